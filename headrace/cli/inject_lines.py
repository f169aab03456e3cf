"""`headrace inject FLOW --lines FILE`: a message per line, in calls of many."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import sys
import threading
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from headrace.cli.invocation import print_json, print_usage

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient

READ_BYTES = 1024 * 1024
MAX_LINE_BYTES = 1024 * 1024
MOST_TOLD = 20


@dataclass(slots=True)
class LinesTold:
    """What became of the lines; `refused` has number and reason of the first ones that were not stored."""

    stored: int = 0
    known: int = 0
    not_stored: int = 0
    refused: list[tuple[int, str, str]] = field(default_factory=list)

    def as_json(self) -> dict[str, object]:
        refusals = [{"line": line, "reason": reason, "message": message} for line, reason, message in self.refused]
        return {"stored": self.stored, "known": self.known, "refused": self.not_stored, "refusals": refusals}


def opened(path: Path) -> IO[bytes]:
    """`-` is standard input."""
    if str(path) == "-":
        return sys.stdin.buffer
    try:
        return path.open("rb")
    except OSError as error:
        print_usage(f"{path}: {error.strerror}")


async def inject_lines(
    client: AsyncClient, flow: str, source: IO[bytes], content_type: str, headers: Mapping[str, str], request_id: str
) -> LinesTold:
    """Sends lines as they come; empty ones are no messages. A line's request id is `request_id` and its number."""
    from headrace.api.flow.v1 import flow_pb2

    told, numbers = LinesTold(), list[int]()

    async def messages() -> AsyncIterator[flow_pb2.InjectedMessage]:
        async for number, line in _lines(source):
            numbers.append(number)
            named = f"{request_id}:{number}" if request_id else ""
            yield flow_pb2.InjectedMessage(body=line, content_type=content_type, headers=headers, request_id=named)

    async for injected in client.inject_many(flow, messages()):
        if injected.stored:
            told.stored += 1
            told.known += injected.outcome.duplicate
            continue
        told.not_stored += 1
        if len(told.refused) < MOST_TOLD:
            refusal = injected.outcome.refusal
            told.refused.append((numbers[injected.number], refusal.reason, refusal.message))
    return told


def print_lines_told(told: LinesTold, *, as_json: bool) -> int:
    """Answers the exit status: 1 where a line was not stored."""
    if as_json:
        print_json(told.as_json())
        return int(told.not_stored > 0)
    known = f", {told.known} of them it had already" if told.known else ""
    print(f"{told.stored} messages stored{known}")
    for line, reason, message in told.refused:
        print(f"headrace: line {line}: {reason}: {message}", file=sys.stderr)
    if told.not_stored > len(told.refused):
        print(f"headrace: and {told.not_stored - len(told.refused)} more were refused", file=sys.stderr)
    return int(told.not_stored > 0)


async def _lines(source: IO[bytes]) -> AsyncIterator[tuple[int, bytes]]:
    """Numbers count from 1. What is there is read at once, so that a slow writer's lines are not held back."""
    rest, number = b"", 0
    async for data in _chunks(source.fileno()):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            number += 1
            if line.strip():
                yield number, line.removesuffix(b"\r")
        if len(rest) > MAX_LINE_BYTES:
            print_usage(f"line {number + 1} is longer than {MAX_LINE_BYTES} bytes; a message has at most 512 KiB")
    if rest.strip():
        yield number + 1, rest.removesuffix(b"\r")


async def _chunks(descriptor: int) -> AsyncIterator[bytes]:
    """Read in a thread that nobody waits for: a terminal or a pipe may have nothing for ever."""
    loop = asyncio.get_running_loop()
    read: asyncio.Queue[bytes | OSError] = asyncio.Queue(2)

    def put(found: bytes | OSError) -> None:
        asyncio.run_coroutine_threadsafe(read.put(found), loop).result()

    def work() -> None:
        with contextlib.suppress(RuntimeError, concurrent.futures.CancelledError):  # the command has ended
            data = b"?"
            while data:
                try:
                    data = os.read(descriptor, READ_BYTES)
                except OSError as error:
                    put(error)
                    return
                put(data)

    threading.Thread(target=work, name="lines", daemon=True).start()
    while found := await read.get():
        if isinstance(found, OSError):
            print_usage(f"the lines cannot be read: {found.strerror}")
        yield found
