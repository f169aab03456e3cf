"""A broker under strace, and what its system calls tell: what was written, synced and answered, in which order."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import re
import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from headrace.edge.broker_process import BrokerProcess

CALLS = "read,write,writev,pwrite64,pwritev,fsync,fdatasync,sendto,sendmsg"
LINE = re.compile(r"^(?P<thread>\d+) +(?:(?P<call>\w+)\((?P<args>.*)|<\.\.\. (?P<resumed>\w+) resumed>(?P<rest>.*))$")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
PUBLISH = re.compile(
    rb"HPUB \S+ (?:(?P<reply>\S+) )?(?P<header>\d+) (?P<whole>\d+)\r\n|PUB \S+ (?:\S+ )?(?P<payload>\d+)\r\n"
)


@dataclass
class TracedBroker(BrokerProcess):
    """A broker under strace, which ends with it; `options` are more of strace's own (`-e inject=...`)."""

    trace: Path = field(default_factory=Path)
    options: tuple[str, ...] = ()

    async def prepare(self) -> list[str]:
        command = await super().prepare()
        calls = ("-y", "-s", "65536", "-e", f"trace={CALLS}") if not self.options else self.options
        return ["strace", "-f", *calls, "-o", str(self.trace), *command]

    async def stop(self, grace_s: float = 10.0) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
        async with asyncio.timeout(grace_s):
            await self.process.wait()


@dataclass(frozen=True)
class Call:
    """One system call with the lines at which it began and returned."""

    name: str
    text: str
    began: int
    ended: int

    @property
    def path(self) -> str:
        """The file, or `TCP:[...]`."""
        found = re.match(r"\d+<([^>]*)>", self.text)
        return found[1] if found else ""

    @property
    def is_socket(self) -> bool:
        return self.path.startswith(("socket:", "TCP"))

    @property
    def strings(self) -> str:
        """What was read or written, escaped as strace does it; one text may lie across two buffers."""
        return "".join(STRING.findall(self.text))


def read_calls(trace: Path) -> Iterator[Call]:
    """Calls in the order of their return; those of other threads may come in between."""
    begun: dict[str, tuple[str, str, int]] = {}
    with trace.open(errors="replace") as file:
        for number, line in enumerate(file):
            found = LINE.match(line.rstrip("\n"))
            if found is None:
                continue
            if found["call"] and line.rstrip().endswith("<unfinished ...>"):
                begun[found["thread"]] = (found["call"], found["args"], number)
            elif found["call"]:
                yield Call(found["call"], found["args"], number, number)
            elif found["thread"] in begun:
                name, text, began = begun.pop(found["thread"])
                yield Call(name, text + (found["rest"] or ""), began, number)


@dataclass
class Batch:
    """An atomic batch as a client sent it; `reply` is where its one answer goes."""

    reply: str = ""
    payloads: list[bytes] = field(default_factory=list)


def sent_batches(trace: Path) -> list[Batch]:
    """All atomic batches that clients sent and committed."""
    arrived: dict[str, bytearray] = defaultdict(bytearray)
    for call in read_calls(trace):
        if call.name == "read" and call.is_socket:
            arrived[call.path] += codecs.escape_decode(call.strings)[0]  # type: ignore[attr-defined]
    batches: dict[bytes, Batch] = defaultdict(Batch)
    for stream in arrived.values():
        for header, reply, payload in _publishes(bytes(stream)):
            found = re.search(rb"Nats-Batch-Id: (\S+)\r\n", header)
            if found is None:
                continue
            batches[found[1]].payloads.append(payload)
            if b"Nats-Batch-Commit: 1" in header:
                batches[found[1]].reply = reply.decode()
    return [batch for batch in batches.values() if batch.reply]


def _publishes(stream: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    """Header, reply and payload of each message that a client published on one connection."""
    at = 0
    while found := PUBLISH.search(stream, at):
        header, at = int(found["header"] or 0), found.end() + int(found["whole"] or found["payload"])
        whole = stream[found.end() : at]
        yield whole[:header], found["reply"] or b"", whole[header:]
