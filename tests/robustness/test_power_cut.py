"""A power cut in the `durable` profile: every acknowledgement leaves the broker after the fsync of what it is for.

The broker's system calls are traced under load. What is acknowledged before its bytes were written, or before the
file that holds them was synced after that write had returned, a power cut could take. That goes for single messages,
for the batches in which a keyed step stores the outputs of its inputs with its cursor, and for those in which plain
steps store and remove what waits.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.nats_link import NatsLink
from tests.contract.lane_world import CONSUMER, STREAM, SUBJECT, Inbox, grouping_lane, make_world
from tests.support.broker_trace import Call, TracedBroker, read_calls, sent_batches
from tests.support.eventually import eventually
from tests.support.sidecar import sidecar_bench

MESSAGES = 600
AT_ONCE = 40
TOGETHER = 300
KEYS, INPUTS, OUTPUTS = 8, 160, 3
MARKER = re.compile(r"marker-(\d{6})")
# Where the broker keeps a batch that is not committed yet.
STAGED = "/batches/"
# nats-server's answer to a publish; strace escapes the quotes.
ANSWER = re.compile(r"(_INBOX\.[\w.]+) \d+ \d+\\r\\n\{\\\"stream\\\":")
PURGE = re.compile(r"PUB \$JS\.API\.STREAM\.PURGE\.\S+ (\S+) \d+\\r")
PURGED = re.compile(r"(_INBOX\.[\w.]+) \d+ \d+\\r\\n\{[^{}]*stream_purge_response[^{}]*\\\"purged\\\":(\d+)")
SOURCE = f"""
from headrace.sdk import Component, Context

component = Component()

@component.action
async def work(body: dict, ctx: Context) -> None:
    for number in range({OUTPUTS}):
        await ctx.emit({{"text": "marker-%06d" % (body["n"] * {OUTPUTS} + number)}})
"""


@dataclass(frozen=True)
class Promise:
    """One acknowledgement: the subject that it goes to, and what it says is stored."""

    reply: str
    markers: tuple[str, ...]


def check_trace(trace: Path, promises: Iterable[Promise]) -> tuple[int, list[str]]:
    """How many acknowledgements left after one sync of all they are for, and what was wrong with the others."""
    written: dict[str, tuple[str, int]] = {}
    syncs: dict[str, list[Call]] = {}
    answered: dict[str, int] = {}
    for call in read_calls(trace):
        if call.name in ("fsync", "fdatasync"):
            syncs.setdefault(call.path, []).append(call)
        elif call.name != "read" and call.path.endswith(".blk") and STAGED not in call.path:
            for marker in MARKER.findall(call.text):
                written.setdefault(marker, (call.path, call.ended))
        elif call.name != "read" and call.is_socket:
            for inbox in ANSWER.findall(call.strings):
                answered.setdefault(inbox, call.began)
    good, wrong = 0, []
    for promise in promises:
        if promise.reply not in answered or not written.keys() >= set(promise.markers):
            wrong.append(f"{promise}: answered {promise.reply in answered}, not all written")
            continue
        places = [written[marker] for marker in promise.markers]
        path, at = max(places, key=lambda place: place[1])
        before = answered[promise.reply]
        if len({place[0] for place in places}) == 1 and any(
            at < sync.began and sync.ended < before for sync in syncs.get(path, [])
        ):
            good += 1
        else:
            wrong.append(f"{promise}: written at line {at}, answered at {before}, no sync between")
    return good, wrong


async def publish_all(broker: TracedBroker) -> list[Promise]:
    """Publishes single messages under load and awaits every acknowledgement."""
    connection = await connect_nats(broker.url, "load")
    await JetStreamAssets(connection).create_stream(
        {"name": "orders", "subjects": ["orders.>"], "retention": "workqueue", "storage": "file", "num_replicas": 1}
    )
    lane = NatsLane(await NatsLink.connect(broker.url, "load lane"))
    await lane.start()
    promises: list[Promise] = []
    add = lane._publishes.add

    def remembering(subject: bytes, header: bytes, payload: bytes, *rest: Any) -> None:
        add(subject, header, payload, *rest)
        token = next(reversed(lane._publishes._slots)).decode()
        promises.append(Promise(f"{lane._inbox}.{token}", (MARKER.findall(payload.decode())[0],)))

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
    return promises


@pytest.mark.needs("strace")
@pytest.mark.parametrize(("profile", "safe"), [("durable", True), ("fast", False)])
async def test_an_acknowledgement_follows_its_fsync(
    tmp_path: Path, profile: str, safe: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fast` is the fault that shows the check's teeth: there acknowledgements do not wait."""
    broker = TracedBroker(tmp_path / "broker", profile=profile, trace=tmp_path / "trace")
    await broker.start()
    try:
        promises = await publish_all(broker)
    finally:
        await broker.stop()
    assert len(promises) == MESSAGES
    good, wrong = check_trace(broker.trace, promises)
    with capsys.disabled():
        print(f"\npower cut, {profile}: {good} of {MESSAGES} acknowledgements left after the fsync of their message")
    if safe:
        assert (good, wrong[:5]) == (MESSAGES, [])
    else:
        assert good < MESSAGES / 2


@pytest.mark.needs("strace")
@pytest.mark.parametrize(("profile", "safe"), [("durable", True), ("fast", False)])
async def test_the_acknowledgement_of_a_keyed_step_s_batch_follows_the_fsync_of_all_of_it(
    tmp_path: Path, profile: str, safe: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the broker was sent is read from its own system calls: a sidecar of a keyed step works as always."""
    broker = TracedBroker(tmp_path / "broker", profile=profile, trace=tmp_path / "trace")
    await broker.start()
    try:
        async with sidecar_bench(
            broker.url, tmp_path, source=SOURCE, key="body:/key", slots=4, prefetch=32, max_waiting=2_000
        ) as bench:
            await bench.prepare()
            for number in range(INPUTS):
                await bench.inject(json.dumps({"key": f"k{number % KEYS}", "n": number}).encode(), f"i{number}")
            await bench.start()
            await bench.until_done(within_s=40)
    finally:
        await broker.stop()
    batches = sent_batches(broker.trace)
    promises = [
        Promise(batch.reply, markers)
        for batch in batches
        if (markers := tuple(MARKER.findall(b" ".join(batch.payloads).decode(errors="replace"))))
    ]
    messages = sum(len(promise.markers) for promise in promises)
    good, wrong = check_trace(broker.trace, promises)
    with capsys.disabled():
        print(
            f"\npower cut, {profile}: {good} of {len(promises)} acknowledgements of batches ({messages} outputs of "
            f"{INPUTS} inputs) left after the fsync of the whole batch"
        )
    assert messages == INPUTS * OUTPUTS
    if safe:
        assert (good, wrong[:5]) == (len(promises), [])
    else:
        assert good < len(promises) / 2


def check_removals(trace: Path) -> tuple[int, list[str]]:
    """How many messages were removed by purges that were answered after the sync of what they wrote; and what was wrong
    with the others."""
    asked: dict[str, int] = {}
    writes: list[Call] = []
    syncs: list[Call] = []
    good, wrong = 0, []
    for call in read_calls(trace):
        if call.name == "read" and call.is_socket:
            asked |= dict.fromkeys(PURGE.findall(call.strings), call.began)
        elif call.name in ("fsync", "fdatasync"):
            syncs.append(call)
        elif call.path.endswith(".blk") and STAGED not in call.path:
            writes.append(call)
        elif call.is_socket:
            for inbox, count in PURGED.findall(call.strings):
                own = [each for each in writes if asked[inbox] < each.began < call.began]
                last = {each.path: each.ended for each in own}
                synced = all(
                    any(sync.path == path and at < sync.began and sync.ended < call.began for sync in syncs)
                    for path, at in last.items()
                )
                if own and synced:
                    good += int(count)
                else:
                    wrong.append(f"{inbox}: {len(own)} writes, all synced: {synced}")
    return good, wrong


@pytest.mark.needs("strace")
@pytest.mark.parametrize(("profile", "safe"), [("durable", True), ("fast", False)])
async def test_what_waits_is_stored_and_removed_together_after_its_fsync(
    tmp_path: Path, profile: str, safe: bool
) -> None:
    """As plain steps and gateways do it in `durable`."""
    broker = TracedBroker(tmp_path / "broker", profile=profile, trace=tmp_path / "trace")
    await broker.start()
    try:
        async with make_world(broker, grouping_lane) as world, world.lane() as lane:
            await asyncio.gather(
                *(lane.publish(SUBJECT, b"marker-%06d" % number, message_id=f"m{number}") for number in range(TOGETHER))
            )
            inbox = Inbox()
            lane.consume(STREAM, CONSUMER, credit=TOGETHER, on_deliveries=inbox.take)
            await eventually(lambda: len(inbox.deliveries) == TOGETHER)
            # One stays, so that what is removed is removed from among others.
            await asyncio.gather(*(lane.acknowledge(delivery) for delivery in inbox.deliveries[:-1]))
    finally:
        await broker.stop()
    promises = [
        Promise(batch.reply, tuple(MARKER.findall(b" ".join(batch.payloads).decode(errors="replace"))))
        for batch in sent_batches(broker.trace)
    ]
    assert sum(len(promise.markers) for promise in promises) > TOGETHER / 2
    stored, not_stored = check_trace(broker.trace, promises)
    removed, not_removed = check_removals(broker.trace)
    if safe:
        assert (stored, not_stored) == (len(promises), [])
        assert (removed, not_removed) == (TOGETHER - 1, [])
    else:
        assert stored < len(promises)
        assert removed < TOGETHER / 2
