"""A keyed step: slots, order by key, fenced commits; one real sidecar on a real broker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.broker_process import BrokerProcess
from headrace.model import subjects
from headrace.model.message_ids import output_message_id
from headrace.model.slots import slot_of
from headrace.wire.cursor import Cursor, encode_cursor
from headrace.wire.envelope import encode_envelope
from tests.support.eventually import eventually
from tests.support.sidecar import sidecar_bench
from tests.support.step_messages import Arrived

SOURCE = """
from asyncio import sleep as pause
from headrace.sdk import Component, Context

component = Component()
running = set()

@component.action
async def work(body: dict, ctx: Context) -> None:
    key = body["customer"]
    assert key not in running, "two of one key at once"
    running.add(key)
    await pause(body.get("pause", 0.0))
    running.discard(key)
    await ctx.emit(body)
"""


def message(key: str, number: int, **more: object) -> bytes:
    return json.dumps({"customer": key, "n": number, **more}).encode()


async def test_order_of_each_key_is_kept_and_keys_run_side_by_side(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, key="body:/customer", slots=4) as bench:
        await bench.prepare()
        keys = [f"c{number}" for number in range(20)]
        for number in range(10):
            for key in keys:
                await bench.inject(message(key, number, pause=0.005 if number % 3 else 0.0), f"{key}-{number}")
        await bench.start()
        arrived = [json.loads(found.envelope.body) for found in await bench.take(200)]
        for key in keys:
            assert [body["n"] for body in arrived if body["customer"] == key] == list(range(10))
        await bench.until_done()
        status = await bench.until(lambda status: status.in_flight == 0)
        assert [lease.slot for lease in status.slots] == [0, 1, 2, 3]
        assert status.counters["processed"] == 200
        assert status.counters["slots_lost"] == 0
        assert await bench.waiting("next") == 0


VARIED = """
from asyncio import create_task, sleep as pause
from headrace.sdk import Component, ComponentError, Context

component = Component()
left = {}
late = set()

@component.action
async def work(body: dict, ctx: Context) -> None:
    match body.get("do"):
        case "fail":
            raise ComponentError("NO_GOOD", "no good", retryable=False)
        case "fail twice":
            left.setdefault(body["n"], 2)
            left[body["n"]] -= 1
            if left[body["n"]] >= 0:
                raise RuntimeError("not yet")
        case "many":
            for number in range(body["count"]):
                await ctx.emit({**body, "part": number})
            return
        case "twins":
            await ctx.emit({**body, "part": 0}, key="same")
            await ctx.emit({**body, "part": 1}, key="same")
            return
        case "late":
            async def emit_later():
                await pause(0.05)
                await ctx.emit({**body, "part": "late"})
            task = create_task(emit_later())
            late.add(task)
            task.add_done_callback(late.discard)
        case "reply":
            await ctx.emit(body)
            await ctx.reply({"answer": body["n"]})
            return
    await ctx.emit(body)
"""


def bodies(arrived: list[Arrived]) -> list[dict[str, Any]]:
    return [json.loads(found.envelope.body) for found in arrived]


async def test_what_fails_is_retried_in_place_and_given_up_in_its_turn(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=VARIED, key="body:/customer", slots=2) as bench:
        await bench.prepare()
        await bench.inject(message("a", 1, do="fail twice"))
        await bench.inject(message("a", 2, do="fail"))
        await bench.inject(message("a", 3))
        bad = bench.edge("work", slot_of("a", 2))
        await bench.publish(bad, b"no envelope", "bad")
        await bench.inject(message("a", 4, do="twins"))
        await bench.inject(b"no JSON, no key")
        await bench.start()
        arrived = bodies(await bench.take(3))
        assert [(body["n"], body.get("part")) for body in arrived] == [(1, None), (3, None), (4, 0)]
        await bench.until_done()
        letters = await bench.dead_letters()
        assert {"MALFORMED_MESSAGE", "NO_GOOD"} < {letter.reason for letter in letters}
        status = await bench.until(lambda status: status.in_flight == 0)
        assert status.counters["retried"] >= 2
        assert status.counters["keyless"] == 1
        assert status.counters["dead_lettered"] == len(letters)


async def test_more_outputs_than_one_batch_takes_are_refused(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=VARIED, key="body:/customer", max_waiting=600) as bench:
        await bench.prepare()
        await bench.inject(message("a", 1, do="many", count=601))
        await bench.inject(message("a", 2, do="many", count=1000))
        await bench.inject(message("a", 3, do="many", count=600))
        await bench.inject(message("a", 4))
        await bench.start()
        arrived = bodies(await bench.take(601))
        assert [(body["n"], body.get("part", 0)) for body in arrived] == [*((3, part) for part in range(600)), (4, 0)]
        await bench.until_done()
        letters = await bench.dead_letters()
        assert [letter.reason for letter in letters] == ["OUTPUT_REFUSED"] * 2
        assert "max_waiting" in letters[0].attempts[-1].message
        assert "999" in letters[1].attempts[-1].message


async def test_a_full_edge_keeps_the_order(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=VARIED, key="body:/customer", max_waiting=7) as bench:
        await bench.prepare()
        await bench.start()
        await bench.until_active()
        taken: list[dict[str, Any]] = []
        numbers = iter(range(60))
        for _ in range(10):
            for _ in range(6):
                number = next(numbers)
                await bench.inject(message("a", number, do="many", count=2))
            taken += bodies(await bench.take(12))
        assert [(body["n"], body["part"]) for body in taken] == [(n, part) for n in range(60) for part in (0, 1)]
        status = await bench.status()
        assert status.counters["refused_full"] > 0


async def test_an_output_that_the_broker_has_is_no_obstacle(broker: BrokerProcess, tmp_path: Path) -> None:
    """Its id refuses the whole batch; the others are found to be new, one by one, and stored once."""
    async with sidecar_bench(broker.url, tmp_path, source=VARIED, key="body:/customer") as bench:
        await bench.prepare()
        first = await bench.inject(message("a", 1, do="many", count=4))
        await bench.inject(message("a", 2))
        for index in (1, 3):
            known = output_message_id(first, "work", str(index), "next")
            raw = encode_envelope(
                message_id=known, execution_id="e", sent_at_unix_ns=1, body=message("a", 1, part=index)
            )
            await bench.publish(bench.edge("next"), raw, known)
        await bench.start()
        arrived = bodies(await bench.take(5))
        assert sorted((body["n"], body.get("part", 0)) for body in arrived) == [(1, 0), (1, 1), (1, 2), (1, 3), (2, 0)]
        await bench.until_done()
        assert await bench.waiting("next") == 0
        assert await bench.dead_letters() == []


async def test_late_emits_and_replies(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=VARIED, key="body:/customer", slots=2) as bench:
        await bench.prepare()
        await bench.inject(message("a", 1, do="late"))
        await bench.inject(message("a", 2, do="reply"), reply=True)
        await bench.start()
        arrived = bodies(await bench.take(3))
        assert [body["n"] for body in arrived if "part" not in body] == [1, 2]
        assert [body["part"] for body in arrived if "part" in body] == ["late"]
        await eventually(lambda: bench.replies)
        assert json.loads(bench.replies[0].body) == {"answer": 2}
        status = await bench.until(lambda status: status.in_flight == 0)
        assert status.counters["emitted_late"] == 1


async def test_a_reply_lost_with_its_process_is_told_and_nothing_runs_again(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """The cursor covers the input, but its acknowledgement was not written: as if killed just between."""
    async with sidecar_bench(broker.url, tmp_path, source=VARIED, key="body:/customer") as bench:
        await bench.prepare()
        await bench.inject(message("a", 1, do="reply"), reply=True)
        through = (await bench.assets.stream_info(bench.stream))["state"]["last_seq"]  # type: ignore[index]
        await bench.connection.jetstream().publish(
            subjects.cursor_subject("default", bench.flow, 1, "work", 0),
            encode_cursor(Cursor(through, 1, "the former owner", 7)),
        )
        await bench.start()
        await bench.until_done()
        await eventually(lambda: bench.replies)
        assert b"REPLY_LOST" in bench.replies[0].body
        assert await bench.waiting("next") == 0


async def test_slots_come_and_go_by_activate_and_drain(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, key="body:/customer", slots=4) as bench:
        await bench.run()
        assert [lease.slot for lease in (await bench.status()).slots] == [0, 1, 2, 3]

        async def tell(generation: int, leases: dict[int, int]) -> None:
            slots = [sidecar_pb2.SlotLease(slot=slot, generation=given) for slot, given in leases.items()]
            await bench.lifecycle.Activate(sidecar_pb2.ActivateRequest(generation=generation, slots=slots))

        keys = {slot_of(f"c{number}", 4): f"c{number}" for number in range(40)}
        await tell(2, {0: 1, 1: 1})
        await bench.until(lambda status: [lease.slot for lease in status.slots] == [0, 1])
        for slot in range(4):
            await bench.inject(message(keys[slot], 1))
        assert {body["customer"] for body in bodies(await bench.take(2))} == {keys[0], keys[1]}
        await bench.until(lambda status: status.in_flight == 0)
        assert await bench.waiting("work") == 2, "nobody pulls what it was told to let go"

        for slot in (2, 3):
            await bench.hand_over(slot, 1, 3)
        await tell(3, {0: 1, 1: 1, 2: 3, 3: 3})
        assert {body["customer"] for body in bodies(await bench.take(2))} == {keys[2], keys[3]}
        await bench.until(lambda status: [lease.generation for lease in status.slots] == [1, 1, 3, 3])
        await bench.lifecycle.Drain(sidecar_pb2.DrainRequest(generation=4, give_way=True))
        await bench.until(lambda status: status.progress == sidecar_pb2.PROGRESS_DRAINED and not status.slots)


async def test_exactly_once_without_a_key_runs_side_by_side(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, exactly_once=True, slots=2, prefetch=40) as bench:
        await bench.prepare()
        for number in range(40):
            await bench.inject(message(f"c{number}", number, pause=0.2))
        await bench.start()
        await bench.until(lambda status: status.in_flight >= 30)
        arrived = bodies(await bench.take(40))
        assert sorted(body["n"] for body in arrived) == list(range(40))
        status = await bench.until(lambda status: status.in_flight == 0)
        assert status.counters["keyless"] == 0


async def test_a_plain_step_sends_to_the_slot_of_the_receivers_key_in_order(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """Through a full edge and a restart of the broker."""
    emitter = """
from headrace.sdk import Component, Context

component = Component()

@component.action
async def work(body: dict, ctx: Context) -> None:
    for number in range(200):
        await ctx.emit({"customer": f"c{number % 5}", "n": number})
"""
    async with sidecar_bench(
        broker.url, tmp_path, source=emitter, receiver_key="body:/customer", receiver_slots=3, max_waiting=10
    ) as bench:
        await bench.run()
        await bench.inject(b"{}")
        await eventually(lambda: bench.waiting("next"))
        broker.kill()
        assert broker.process is not None
        await broker.process.wait()
        await broker.start()
        await eventually(lambda: bench.connection.is_connected)
        arrived = await bench.take(200, within_s=30)
        for key in range(5):
            seen = [body["n"] for body in bodies(arrived) if body["customer"] == f"c{key}"]
            assert seen == list(range(key, 200, 5))
        for found in arrived:
            assert found.subject.endswith(f".{slot_of(json.loads(found.envelope.body)['customer'], 3)}")
        await bench.until_done()
        assert (await bench.status()).counters["refused_full"] > 0
