"""kill -9 of component, sidecar and broker in turn while one step works: outputs as a set, from outside."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.support.eventually import eventually
from tests.support.sidecar import SidecarBench, sidecar_bench

MESSAGES = 1_500
SOURCE = """
from asyncio import sleep as pause
from headrace.sdk import Component, Context

component = Component()

@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(body)
    await pause(0.02)
    await ctx.emit(body + b"!")
"""


async def kill(victim: str, bench: SidecarBench, broker: BrokerProcess) -> int:
    """Kills the victim while the step holds messages; answers how many."""
    held = await bench.until(lambda status: status.in_flight > 0 and status.component_pid)
    if victim == "component":
        os.kill(held.component_pid, signal.SIGKILL)
    elif victim == "sidecar":
        await bench.kill_sidecar()
        await bench.start()
        await bench.until_active()
    else:
        broker.kill()
        assert broker.process is not None
        await broker.process.wait()
        await broker.start()
        await eventually(lambda: bench.connection.is_connected)
    return int(held.in_flight)


@pytest.mark.parametrize("seed", [1, 2])
async def test_nothing_is_lost_or_doubled(broker: BrokerProcess, tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    rounds = ["component", "sidecar", "broker", "component"]
    chance.shuffle(rounds)
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, max_waiting=10_000, ack_wait_s=1.0) as bench:
        await bench.prepare()
        bodies = {b"%d" % number for number in range(MESSAGES)}
        await asyncio.gather(*(bench.inject(body, body.decode()) for body in sorted(bodies)))
        await bench.start()
        held = []
        for victim in rounds:
            await asyncio.sleep(chance.uniform(0.05, 0.15))  # tidy: pace
            held.append(await kill(victim, bench, broker))
        await bench.until_done(within_s=30)
        arrived = [found.envelope.body for found in await bench.take(2 * MESSAGES, within_s=30)]
        print(f"seed {seed}: {rounds} held {held} when killed")
        assert min(held) > 0
        assert set(arrived) == bodies | {body + b"!" for body in bodies}
        assert len(arrived) == len(set(arrived))

        async def nothing_more_is_stored() -> bool:  # the broker removes what was acknowledged a moment later
            return await bench.waiting("next") == 0

        await eventually(nothing_more_is_stored)
        assert await bench.dead_letters() == []
