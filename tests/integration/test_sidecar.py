"""A sidecar and its component, as processes, on a real broker."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.api.flow.v1 import flow_pb2
from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.edge.broker_process import BrokerProcess
from headrace.model import subjects
from headrace.model.message_ids import output_message_id
from tests.support.eventually import eventually
from tests.support.sidecar import sidecar_bench
from tests.support.sidecar_sources import HEAD, count_calls
from tests.support.step_assets import STEP, WORKSPACE


async def test_a_message_goes_in_and_its_output_comes_out(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        message_id = await bench.inject(b"hello", "one")
        (arrived,) = await bench.take(1)
        assert arrived.envelope.body == b"hello"
        assert arrived.envelope.parent_id == message_id
        assert arrived.envelope.sender == STEP
        assert arrived.message_id == arrived.envelope.id == output_message_id(message_id, STEP, "0", "next")
        await bench.until_done()
        status = await bench.status()
        assert status.counters["processed"] == 1
        assert set(status.stage_ms) == {"fetch", "build", "start", "init", "self_check", "total"}


async def test_fan_out_has_the_ids_that_law_4_says(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(b"first")
    await ctx.emit(b"second", key="mine")
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, receivers=("left", "right")) as bench:
        await bench.run()
        message_id = await bench.inject(b"in")
        for receiver in ("left", "right"):
            first, second = await bench.take(2, receiver)
            assert (first.envelope.body, second.envelope.body) == (b"first", b"second")
            assert first.message_id == output_message_id(message_id, STEP, "0", receiver)
            assert second.message_id == output_message_id(message_id, STEP, "k:mine", receiver)


async def test_a_reply_reaches_the_caller_and_its_address_travels_on(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(b"on")
    await ctx.reply({"ok": True}, status=201, headers={"x-a": "b"})
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        await bench.inject(b"in", reply=True)
        (arrived,) = await bench.take(1)
        assert arrived.envelope.reply_to.subject
        await eventually(lambda: bench.replies)
        (reply,) = bench.replies
        assert (reply.status, json.loads(reply.body), dict(reply.headers)) == (201, {"ok": True}, {"x-a": "b"})
        assert (reply.step, reply.deployment, reply.version, reply.revision) == (STEP, 1, 1, bench.digest)
        await bench.until_done()


async def test_failures_are_tried_again_then_dead_lettered_with_their_attempts(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(b"never to be seen")
    raise ValueError(f"attempt {ctx.message.attempt}")
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        message_id = await bench.inject(b"in", reply=True)
        await eventually(lambda: bench.replies)
        error = json.loads(bench.replies[0].body)["error"]
        assert bench.replies[0].status == 500
        assert error["execution"] == bench.replies[0].execution_id
        (letter,) = await bench.dead_letters()
        assert letter.original.id == message_id
        assert letter.original.body == b"in"
        assert (letter.flow, letter.step, letter.deployment, letter.revision) == ("bench", STEP, 1, bench.digest)
        assert [attempt.attempt for attempt in letter.attempts] == [1, 2, 3]
        await bench.until_done()
        assert await bench.waiting("next") == 0
        status = await bench.status()
        assert (status.counters["retried"], status.counters["dead_lettered"]) == (2, 1)


async def test_a_rejection_answers_that_caller_and_no_other(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    if body == b"bad":
        raise ComponentError("UNKNOWN_SKU", "no such article", status=422)
    await ctx.reply(b"fine")
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        for body in (b"good", b"bad", b"good"):
            await bench.inject(body, reply=True)
        await eventually(lambda: len(bench.replies) == 3)
        assert sorted(reply.status for reply in bench.replies) == [200, 200, 422]
        (rejected,) = [reply for reply in bench.replies if reply.status == 422]
        assert json.loads(rejected.body)["error"]["code"] == "UNKNOWN_SKU"
        await bench.until_done()
        assert await bench.dead_letters() == []
        assert (await bench.status()).counters["rejected"] == 1
        # Nobody waits: then it is a dead letter.
        await bench.inject(b"bad")
        await bench.until_done()
        (letter,) = await bench.dead_letters()
        assert letter.reason == "UNKNOWN_SKU"


async def test_a_call_that_waits_over_its_limit_is_ended_before_it_is_tried_again(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    source = (
        HEAD
        + count_calls(tmp_path)
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    if note(body) > 1:
        assert note(b"ended") == 2  # the first call wrote it once
        await ctx.emit(b"in time")
        return
    try:
        await pause(30)
    finally:
        note(b"ended")
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, timeout_s=0.3) as bench:
        await bench.run()
        await bench.inject(b"in")
        (arrived,) = await bench.take(1)
        assert arrived.envelope.body == b"in time"
        await bench.until_done()
        counters = (await bench.status()).counters
        assert (counters["timeouts"], counters["retried"], counters["processed"]) == (1, 1, 1)


async def test_a_call_that_blocks_over_its_limit_is_abandoned_and_its_late_answer_ignored(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """A plain function cannot be stopped: the sidecar goes on without it."""
    source = (
        HEAD
        + count_calls(tmp_path)
        + """
@component.action
def work(body: bytes, ctx: Context) -> None:
    if note(body) == 1:
        block_until("answered")
        ctx.emit(b"late")
    else:
        ctx.emit(b"in time")
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, timeout_s=0.3) as bench:
        await bench.run()
        await bench.inject(b"in")
        (arrived,) = await bench.take(1)
        assert arrived.envelope.body == b"in time"
        (tmp_path / "answered").touch()
        status = await bench.until(lambda status: status.counters["late_ignored"] >= 1)
        assert status.counters["timeouts"] == 1
        assert await bench.waiting("next") == 0
        await bench.until_done()


async def test_the_last_timeout_answers_504(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(30)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, timeout_s=0.1) as bench:
        await bench.run()
        await bench.inject(b"in", reply=True)
        await eventually(lambda: bench.replies)
        assert bench.replies[0].status == 504
        assert json.loads(bench.replies[0].body)["error"]["code"] == "TIMEOUT"
        (letter,) = await bench.dead_letters()
        assert letter.reason == "TIMEOUT"


async def test_outputs_beyond_the_limits_are_refused(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    if body == b"many":
        for number in range(1001):
            await ctx.emit(b"x")
    else:
        await ctx.emit(b"x" * (100 * 1024 * 1024 + 1))
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        await bench.inject(b"many", reply=True)
        await bench.inject(b"large", reply=True)
        await eventually(lambda: len(bench.replies) == 2)
        codes = {json.loads(reply.body)["error"]["code"] for reply in bench.replies}
        assert codes == {"OUTPUT_REFUSED", "ATTACHMENT_TOO_LARGE"}
        await bench.until_done()
        assert await bench.waiting("next") == 0


async def test_a_rebound_is_tried_again_after_its_delay(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + count_calls(tmp_path)
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    if note(body) < 3:
        raise Rebound("not yet", delay_s=0.05)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        await bench.inject(b"in")
        await bench.take(1)
        await bench.until_done()
        assert (await bench.status()).counters["rebounds"] == 2


async def test_the_phases_of_a_hop_add_up_to_the_hop(broker: BrokerProcess, tmp_path: Path) -> None:
    """Law 7: within 1 %, on a step without outputs, all of whose phases its own sidecar records."""
    async with sidecar_bench(broker.url, tmp_path, receivers=()) as bench:
        await bench.run()
        for number in range(100):
            await bench.inject(b"in", str(number))
        sums: dict[str, int] = {}

        async def all_recorded() -> bool:
            subject = subjects.hop_request_subject(WORKSPACE, bench.flow)
            snapshot = HopSnapshot.FromString((await bench.connection.request(subject, b"", timeout=5)).data)
            mine = {found.phase: found for found in snapshot.histograms if found.step == STEP}
            sums.update({phase: found.sum_ns for phase, found in mine.items()})
            return len(mine) == 6 and all(found.count == 100 for found in mine.values())

        await eventually(all_recorded)
        hop_ns = sums.pop("hop")
        assert set(sums) == {"queue", "sidecar-in", "component", "sidecar-out", "publish"}
        assert abs(sum(sums.values()) - hop_ns) <= 0.01 * hop_ns


async def test_a_late_emit_is_published(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
tasks = set()

@component.action
async def work(body: bytes, ctx: Context) -> None:
    async def later():
        await pause(0.1)
        await ctx.emit(b"late")
    tasks.add(asyncio.create_task(later()))
    await ctx.emit(b"early")
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        message_id = await bench.inject(b"in")
        early, late = await bench.take(2)
        assert (early.envelope.body, late.envelope.body) == (b"early", b"late")
        assert late.message_id == output_message_id(message_id, STEP, "1", "next")


async def test_component_output_becomes_log_lines(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    ctx.log.warning("seen", size=len(body))
    print("plain")
    print("x" * 20000)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        await bench.inject(b"in")
        await bench.until_done()

        async def all_lines() -> list[flow_pb2.LogLine]:
            lines = [flow_pb2.LogLine.FromString(raw) for raw in await bench.log_lines()]
            lines = [line for line in lines if line.source == "component"]
            assert {"seen", "plain", "xxxxx"} <= {line.message[:5] for line in lines}
            return lines

        lines = await eventually(all_lines)
        by_text = {line.message[:5]: line for line in lines}
        assert by_text["seen"].level == "warning"
        assert json.loads(by_text["seen"].fields_json)["size"] == 2
        assert by_text["plain"].level == "info"
        assert len(by_text["xxxxx"].message) < 9000
        assert by_text["plain"].instance == "default.bench.d1.work.0"


# Death and repetition
