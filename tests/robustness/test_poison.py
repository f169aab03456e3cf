"""Messages that kill whoever works on them: found and dead-lettered; nobody else pays, nothing loops."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.support.eventually import eventually
from tests.support.sidecar import SidecarBench, sidecar_bench

POISON = {
    b"exit": "exit status 3",
    b"segfault": "SIGSEGV",
    b"kill": "SIGKILL",
    b"memory": "MiB of memory",
}
SOURCE = """
import asyncio
import ctypes
import os
import signal
from headrace.sdk import Component, Context

component = Component()
hoard = []


@component.action
async def work(body: bytes, ctx: Context) -> None:
    await asyncio.sleep(0.02)  # tidy: pace
    match body:
        case b"exit":
            os._exit(3)
        case b"segfault":
            ctypes.string_at(0)
        case b"kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case b"memory":
            while len(hoard) < 400:
                hoard.append(os.urandom(1 << 20))
                await asyncio.sleep(0.002)  # tidy: pace
        case b"parricide":
            os.kill(os.getppid(), signal.SIGKILL)
            await asyncio.sleep(30)  # tidy: pace
    await ctx.emit(body)
"""


@pytest.mark.timeout(120)
async def test_several_poison_messages_among_good_ones(broker: BrokerProcess, tmp_path: Path) -> None:
    """All are in work together, so that each crash hits all the others; only the guilty are dead-lettered."""
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, variables=LIMITS) as bench:
        await bench.prepare()
        good = [b"good %d" % number for number in range(40)]
        for number, body in enumerate(good):
            await bench.inject(body)
            if number % 10 == 5:
                await bench.inject(list(POISON)[number // 10])
        await bench.start()
        await bench.until_active()
        # More while the poison is being found: they are not held up until all of it is.
        for body in (later := [b"later %d" % number for number in range(20)]):
            await bench.inject(body)
        arrived = await bench.take(len(good) + len(later), within_s=80)
        assert sorted(found.envelope.body for found in arrived) == sorted(good + later)
        await bench.until_done(within_s=60)
        letters = {letter.original.body: letter for letter in await bench.dead_letters()}
        assert set(letters) == set(POISON)
        for body, words in POISON.items():
            assert letters[body].reason == "COMPONENT_DIED"
            assert words in letters[body].attempts[-1].message
        assert await bench.waiting("next") == 0
        status = await bench.status()
        # Twice together, then each alone; one of them may have been found while others were not yet there.
        assert status.component_starts <= 1 + 2 + 2 * len(POISON)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("exactly_once", [False, True], ids=["plain", "exactly once"])
async def test_a_message_that_ends_the_sidecar_itself_does_not_loop(
    broker: BrokerProcess, tmp_path: Path, exactly_once: bool
) -> None:
    keyed = {"exactly_once": True, "slots": 1} if exactly_once else {}
    async with sidecar_bench(broker.url, tmp_path, source=SOURCE, ack_wait_s=2.0, **keyed) as bench:
        await bench.prepare()
        good = [b"good %d" % number for number in range(10)]
        for body in (*good[:5], b"parricide", *good[5:]):
            await bench.inject(body)
        lives = await live_until_done(bench, most_lives=8)
        (letter,) = await bench.dead_letters()
        assert (letter.reason, letter.original.body) == ("SIDECAR_DIED", b"parricide")
        assert lives == 6  # three together, two alone, and the one that gives it up
        arrived = await bench.take(len(good), within_s=20)
        assert sorted(found.envelope.body for found in arrived) == sorted(good)


@pytest.mark.timeout(120)
async def test_a_sidecar_killed_between_the_crashes_is_no_reason_to_give_a_good_message_up(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """Deaths of the mesh's own: four in a row while a message is in work, and it is delivered all the same."""
    slow = SOURCE.replace("asyncio.sleep(0.02)", "asyncio.sleep(0.5)")  # tidy: pace
    async with sidecar_bench(broker.url, tmp_path, source=slow, ack_wait_s=2.0) as bench:
        await bench.prepare()
        await bench.inject(b"good")
        for _ in range(4):
            await bench.start()
            await bench.until_active()
            await bench.until(lambda status: status.in_flight == 1)
            await bench.kill_sidecar()
        await bench.start()
        (arrived,) = await bench.take(1, within_s=20)
        assert arrived.envelope.body == b"good"
        await bench.until_done()
        assert await bench.dead_letters() == []


async def live_until_done(bench: SidecarBench, *, most_lives: int) -> int:
    """Starts the sidecar again each time it dies, as an agent does, until all its inputs are done."""
    for life in range(1, most_lives + 1):
        await bench.start()

        async def over() -> bool:
            assert bench.sidecar is not None
            return bench.sidecar.exit_status is not None or await bench.waiting("work") == 0

        await eventually(over, within_s=30)
        if await bench.waiting("work") == 0:
            return life
        await bench.channel.close()
    raise AssertionError(f"not done after {most_lives} lives")


LIMITS = {"HEADRACE_COMPONENT_MEMORY_MB": "200"}
