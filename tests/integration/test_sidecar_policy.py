"""A step's policy at work: what is retried, how fast calls begin, what cannot be emitted."""

from __future__ import annotations

import json
import time
from pathlib import Path

from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.broker_process import BrokerProcess
from headrace.model.deployment import DeploymentPhase
from headrace.model.flow_spec import RetryPolicy
from tests.support.eventually import eventually
from tests.support.sidecar import sidecar_bench

FAILS = """
import asyncio
from headrace.sdk import Component, ComponentError, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    if body == b"slow":
        await asyncio.sleep(30)  # tidy: pace
    raise ComponentError(body.decode().upper(), "as asked", retryable=body == b"other")
"""


async def test_only_the_codes_listed_are_tried_again(broker: BrokerProcess, tmp_path: Path) -> None:
    retry = RetryPolicy(attempts=3, backoff_s=0.01, max_delay_s=0.02, on=("BUSY",))
    async with sidecar_bench(broker.url, tmp_path, source=FAILS, retry=retry, timeout_s=0.2) as bench:
        await bench.run()
        for body in (b"busy", b"other", b"slow"):
            await bench.inject(body, body.decode())
        await bench.until_done()
        attempts = {letter.original.body: len(letter.attempts) for letter in await bench.dead_letters()}
        assert attempts == {b"busy": 3, b"other": 1, b"slow": 1}


UNENCODABLE = """
from headrace.sdk import Component, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit({"kept": "back"})
    await ctx.emit({"orders": [1, {"when": object()}]})
"""


async def test_an_output_without_json_is_refused_by_name_and_not_tried_again(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=UNENCODABLE) as bench:
        await bench.run()
        await bench.inject(b"in", reply=True)
        await eventually(lambda: bench.replies)
        error = json.loads(bench.replies[0].body)["error"]
        assert (bench.replies[0].status, error["code"]) == (500, "OUTPUT_REFUSED")
        assert "['orders'][1]['when']" in error["message"]
        await bench.until_done()
        (letter,) = await bench.dead_letters()
        assert (letter.reason, len(letter.attempts)) == ("OUTPUT_REFUSED", 1)
        assert await bench.waiting("next") == 0


STAMPS = """
import time
from headrace.sdk import Component, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(str(time.monotonic()).encode())
"""


async def test_calls_begin_no_faster_than_the_rate_limit_and_each_replica_takes_its_share(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=STAMPS, rate_limit=100.0, prefetch=200) as bench:
        await bench.run()
        began = time.monotonic()
        for number in range(60):
            await bench.inject(b"in", str(number))
        stamps = sorted(float(arrived.envelope.body) for arrived in await bench.take(60))
        _at_most(stamps, rate=100, burst=10)
        assert stamps[-1] - began < 5, "it is slowed, not stopped"
        # The deployment gets a second replica; this one learns of it with its next lifecycle call, and takes half.
        bench.replicas = 2
        await bench.write_state(DeploymentPhase.ACTIVE, generation=2)
        await bench.lifecycle.Activate(sidecar_pb2.ActivateRequest(generation=2))

        async def halved() -> bool:
            for number in range(30):
                await bench.inject(b"in", f"{time.monotonic()}-{number}")
            found = sorted(float(arrived.envelope.body) for arrived in await bench.take(30))
            return found[-1] - found[0] >= (30 - 5) / 50 * 0.95

        await eventually(halved)
        assert (await bench.status()).counters["dead_lettered"] == 0


def _at_most(stamps: list[float], *, rate: float, burst: float) -> None:
    for first, start in enumerate(stamps):
        for last in range(first, len(stamps)):
            # Stamps are taken in the component: what began at once may be stamped a moment apart.
            assert last - first + 1 <= burst + rate * (stamps[last] - start + 0.1) + 1


REPLIES = """
from headrace.sdk import Component, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.reply(body)
"""


async def test_a_reply_waits_a_moment_for_a_gateway_that_comes_back_and_not_for_one_that_is_gone(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=REPLIES, receivers=(), prefetch=4) as bench:
        await bench.run()
        await bench.replies_subscription.unsubscribe()
        await bench.connection.flush()
        for number in range(4):
            await bench.inject(b"back", str(number), reply=True)
        await bench.until(lambda status: status.counters["replied"] == 4)
        assert bench.replies == []
        await bench.listen_for_replies()
        await eventually(lambda: len({reply.execution_id for reply in bench.replies}) == 4)
        await bench.until_done()
        # One that stays away holds its replies up once, all together, and then no more.
        await bench.replies_subscription.unsubscribe()
        await bench.connection.flush()
        began = time.monotonic()
        for number in range(200):
            await bench.inject(b"gone", f"gone {number}", reply=True)
        await bench.until_done()
        assert time.monotonic() - began < 12
        assert (await bench.status()).counters["replied"] == 204
        assert await bench.dead_letters() == []


SOURCE = """
import time
from headrace.sdk import Component, Context

component = Component()


@component.listener
async def work(ctx: Context) -> None:
    number = 0
    while not ctx.draining.is_set():
        await ctx.emit(str(time.monotonic()), source_id=str(number))
        number += 1
"""


async def test_a_listener_reads_no_faster_than_its_rate_limit(broker: BrokerProcess, tmp_path: Path) -> None:
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, kind="listener", rate_limit=50.0) as bench:
        await bench.run()
        # Each emit begins when the one before it is stored.
        stamps = [float(arrived.envelope.body) for arrived in await bench.take(80)]
        _at_most(sorted(stamps), rate=50, burst=5)
        assert stamps[-1] - stamps[0] >= (80 - 7) / 50 * 0.95
