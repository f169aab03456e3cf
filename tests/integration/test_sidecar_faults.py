"""A sidecar whose broker refuses, forgets, is silent or has closed its edges; answers kept for a key."""

from __future__ import annotations

import time
from pathlib import Path

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.kv_bucket import KvBucket
from headrace.model import bucket_names, subjects
from headrace.model.answer import AnswerState, accepted, decode_answer, encode_answer, reserved
from headrace.model.deployment import DeploymentPhase
from headrace.model.message_ids import execution_id
from headrace.wire.envelope import decode_reply
from tests.support.eventually import eventually
from tests.support.sidecar import SidecarBench, sidecar_bench
from tests.support.step_assets import STEP, WORKSPACE

HEAD = """
from asyncio import sleep as pause
from headrace.sdk import Component, ComponentError, Context

component = Component()
"""
REPLYING = (
    HEAD
    + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.reply(body)
"""
)


async def close_the_edge(bench: SidecarBench, *, closed: bool) -> None:
    """Takes the deployment's subjects but the step's own out of the stream, or gives them back."""
    keep = [subjects.ingress_filter(WORKSPACE, bench.flow), bench.edge(STEP)]
    config = {**bench.stream_config, "subjects": keep} if closed else bench.stream_config
    await bench.assets.ensure_stream(config)


async def test_a_message_that_is_no_envelope_is_dead_lettered_as_it_is(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        await bench.publish(bench.edge(STEP), b"\xff\xfe nonsense", "nonsense-1")
        await bench.inject(b"fine")
        await bench.take(1)
        await bench.until_done()
        (letter,) = await bench.dead_letters()
        assert letter.reason == "MALFORMED_MESSAGE"
        assert letter.original.body == b"\xff\xfe nonsense"


async def test_work_longer_than_the_ack_wait_is_not_delivered_again(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    await pause(2.5)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source, ack_wait_s=1.0) as bench:
        await bench.run()
        await bench.inject(b"in")
        await bench.take(1)
        await bench.until_done()
        status = await bench.status()
        assert (status.counters["received"], status.counters["redelivered"]) == (1, 0)


async def test_an_edge_that_is_gone_for_a_while_gets_the_message_later(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        await close_the_edge(bench, closed=True)
        await bench.inject(b"in")
        status = await bench.until(lambda status: status.counters["republished"] >= 3)
        assert status.in_flight == 1
        await close_the_edge(bench, closed=False)
        (arrived,) = await bench.take(1)
        assert arrived.envelope.body == b"in"
        await bench.until_done()
        assert await bench.dead_letters() == []


async def test_outputs_of_a_retired_deployment_are_dead_letters(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        await close_the_edge(bench, closed=True)
        await bench.inject(b"in")
        await bench.until(lambda status: status.counters["republished"] >= 1)
        await bench.write_state(DeploymentPhase.RETIRED, 9)
        await bench.until_done()
        (letter,) = await bench.dead_letters()
        assert (letter.reason, letter.step, letter.original.body) == ("DEPLOYMENT_RETIRED", "next", b"in")
        assert letter.original.sender == STEP


async def test_an_answer_is_kept_for_its_key_and_the_first_one_stays(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=REPLYING) as bench:
        await bench.run()
        answers = await KvBucket.open(bench.connection, bucket_names.answer_bucket(WORKSPACE))
        execution = execution_id(bench.stimulus("one"))
        record = accepted(
            reserved(body_digest="d", execution=execution, holder="h", now_unix_s=time.time()), replies=True
        )
        await answers.put("key1", encode_answer(record))
        await bench.inject(b"first", "one", reply=True, answer_key="key1")
        await eventually(lambda: bench.replies)
        entry = await answers.get("key1")
        assert entry is not None
        assert entry.value is not None
        kept = decode_answer(entry.value)
        assert kept.state is AnswerState.FINISHED
        assert decode_reply(kept.reply).body == b"first"
        # A key that belongs to another execution is not touched, and that caller is answered all the same.
        await bench.inject(b"second", "two", reply=True, answer_key="key1")
        await eventually(lambda: len(bench.replies) == 2)
        assert (await answers.get("key1")) == entry
        await bench.until_done()


async def test_a_slow_call_delays_no_other(broker: BrokerProcess, tmp_path: Path) -> None:
    source = (
        HEAD
        + """
@component.action
async def work(body: bytes, ctx: Context) -> None:
    if body == b"slow":
        await pause(30)
    await ctx.emit(body)
"""
    )
    async with sidecar_bench(broker.url, tmp_path, source=source) as bench:
        await bench.run()
        await bench.inject(b"slow")
        for number in range(50):
            await bench.inject(b"%d" % number)
        assert len(await bench.take(50)) == 50

        async def only_the_slow_one_waits() -> bool:
            return await bench.waiting(STEP) == 1

        await eventually(only_the_slow_one_waits)


async def test_two_replicas_share_the_work(broker: BrokerProcess, tmp_path: Path) -> None:
    """And what one of them held when it was killed goes to the other one."""
    gate = tmp_path / "gate"
    source = (
        HEAD
        + f"""
import os

@component.action
async def work(body: bytes, ctx: Context) -> None:
    while body == b"held" and not os.path.exists({str(gate)!r}):
        await pause(0.02)
    await pause(0.02)
    await ctx.emit(str(os.getpid()).encode())
"""
    )
    async with (
        sidecar_bench(broker.url, tmp_path / "a", source=source, prefetch=4, ack_wait_s=1.0, replicas=2) as first,
        sidecar_bench(broker.url, tmp_path / "b", source=source, prefetch=4, ack_wait_s=1.0, replicas=2) as second,
    ):
        await first.run()
        second.connection = first.connection
        second.make_bundle()
        second.plan_digest = first.plan_digest
        second.replica = 1
        await second.start()
        await second.until_active()
        workers: set[bytes] = set()
        for batch in range(20):
            for number in range(20):
                await first.inject(b"quick", f"{batch}.{number}")
            workers |= {found.envelope.body for found in await first.take(20, within_s=20)}
            if len(workers) == 2:
                break
        assert len(workers) == 2
        for number in range(40):
            await first.inject(b"held", str(number))
        await first.until(lambda status: status.in_flight > 0)
        await second.until(lambda status: status.in_flight > 0)
        await second.kill_sidecar()
        gate.touch()
        arrived = await first.take(40, within_s=20)
        assert len({found.message_id for found in arrived}) == 40
        await first.until_done()
        assert await first.waiting("next") == 0
