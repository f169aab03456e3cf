"""A power cut in the `durable` profile: every acknowledgement leaves the broker after the fsync of what it is for.

The broker's system calls are traced under load. What is acknowledged before its bytes were written, or before the
file that holds them was synced after that write had returned, a power cut could take.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_connection import close_nats, connect_nats

MESSAGES = 600
AT_ONCE = 40
CALLS = "write,writev,pwrite64,pwritev,fsync,fdatasync,sendto,sendmsg"
LINE = re.compile(r"^(?P<thread>\d+) +(?:(?P<call>\w+)\((?P<args>.*)|<\.\.\. (?P<resumed>\w+) resumed>(?P<rest>.*))$")
MARKER = re.compile(r"marker-(\d{6})")
# nats-server's answer to a publish; strace escapes the quotes.
ANSWER = re.compile(r"(_INBOX\.[\w.]+) [^{]*?\{\\\"stream\\\":")
STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass
class TracedBroker(BrokerProcess):
    """A broker under strace, which ends with it."""

    trace: Path = field(default_factory=Path)

    async def prepare(self) -> list[str]:
        command = await super().prepare()
        return ["strace", "-f", "-y", "-s", "65536", "-e", f"trace={CALLS}", "-o", str(self.trace), *command]

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


def check_trace(trace: Path, inboxes: dict[str, str]) -> tuple[int, list[str]]:
    """How many acknowledged messages were found synced in time, and what was not; `inboxes`: reply to marker."""
    written: dict[str, tuple[str, int]] = {}
    syncs: dict[str, list[Call]] = {}
    answered: dict[str, int] = {}
    for call in read_calls(trace):
        file = re.match(r"\d+<([^>]*)>", call.text)
        path = file[1] if file else ""
        if call.name in ("fsync", "fdatasync"):
            syncs.setdefault(path, []).append(call)
        elif path.endswith(".blk"):
            for marker in MARKER.findall(call.text):
                written.setdefault(marker, (path, call.ended))
        elif path.startswith(("socket:", "TCP")):
            # One answer may lie across two buffers of a writev.
            for inbox in ANSWER.findall("".join(STRING.findall(call.text))):
                answered.setdefault(inboxes.get(inbox, ""), call.began)
    good, wrong = 0, []
    for marker in inboxes.values():
        if marker not in answered or marker not in written:
            wrong.append(f"{marker}: answered {marker in answered}, written {marker in written}")
            continue
        path, at = written[marker]
        if any(at < sync.began and sync.ended < answered[marker] for sync in syncs.get(path, [])):
            good += 1
        else:
            wrong.append(f"{marker}: written at line {at}, answered at {answered[marker]}, no sync between")
    return good, wrong


async def publish_all(broker: BrokerProcess) -> dict[str, str]:
    """Publishes under load and awaits every acknowledgement; answers which reply subject was whose."""
    connection = await connect_nats(broker.url, "load")
    await JetStreamAssets(connection).create_stream(
        {"name": "orders", "subjects": ["orders.>"], "retention": "workqueue", "storage": "file", "num_replicas": 1}
    )
    lane = NatsLane(connection)
    await lane.start()
    inboxes: dict[str, str] = {}
    add = lane._publishes.add

    def remembering(subject: str, header: bytes, payload: bytes, timeout_s: float) -> object:
        future = add(subject, header, payload, timeout_s)
        token = next(reversed(lane._publishes._slots)).decode()
        inboxes[f"{lane._inbox}.{token}"] = MARKER.findall(payload.decode())[0]
        return future

    lane._publishes.add = remembering  # type: ignore[method-assign, assignment]
    for first in range(0, MESSAGES, AT_ONCE):
        numbers = range(first, first + AT_ONCE)
        answers = [
            lane.publish(f"orders.{number % 7}", f"marker-{number:06d}".encode(), message_id=f"m{number}", timeout_s=30)
            for number in numbers
        ]
        await asyncio.gather(*answers)
    await lane.close()
    await close_nats(connection)
    return inboxes


@pytest.mark.needs("strace")
@pytest.mark.parametrize(("profile", "safe"), [("durable", True), ("fast", False)])
async def test_an_acknowledgement_follows_its_fsync(
    tmp_path: Path, profile: str, safe: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fast` is the fault that shows the check's teeth: there acknowledgements do not wait."""
    broker = TracedBroker(tmp_path / "broker", profile=profile, trace=tmp_path / "trace")
    await broker.start()
    try:
        inboxes = await publish_all(broker)
    finally:
        await broker.stop()
    assert len(inboxes) == MESSAGES
    good, wrong = check_trace(broker.trace, inboxes)
    with capsys.disabled():
        print(f"\npower cut, {profile}: {good} of {MESSAGES} acknowledgements left after the fsync of their message")
    if safe:
        assert (good, wrong[:5]) == (MESSAGES, [])
    else:
        assert good < MESSAGES / 2
