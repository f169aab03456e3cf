"""Broker and sidecar lost together, between outputs and acknowledgements: the one failure under which a plain step may
store an output twice. It says so, on each such message and in its status. A keyed step stores them once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.support.eventually import eventually
from tests.support.sidecar import SidecarBench, sidecar_bench
from tests.support.step_messages import Arrived

MESSAGES = 20


async def lose_both(bench: SidecarBench, broker: BrokerProcess) -> list[Arrived]:
    """The sidecar stops with outputs stored and their inputs unacknowledged; the outputs are consumed; then broker and
    sidecar die. Answers the outputs, those after the restart included."""
    bench.faults = "before-ack:stop@3"
    await bench.prepare()
    for number in range(MESSAGES):
        await bench.inject(b"%d" % number)
    await bench.start()

    async def stopped() -> bool:
        assert bench.sidecar is not None
        return "T (stopped)" in Path(f"/proc/{bench.sidecar.pid}/status").read_text()

    await eventually(stopped)
    before = await bench.take(await bench.waiting("next"))
    assert before
    await broker.stop()  # whatever way it goes, it forgets the ids of what was consumed
    await bench.kill_sidecar()
    await broker.start()
    await eventually(lambda: bench.connection.is_connected)
    bench.faults = ""
    await bench.start()
    await bench.until_active()
    await bench.until_done()
    return before + await bench.take(await bench.waiting("next"))


@pytest.mark.parametrize("exactly_once", [False, True], ids=["plain", "exactly once"])
async def test_what_may_be_there_twice_is_marked(broker: BrokerProcess, tmp_path: Path, exactly_once: bool) -> None:
    async with sidecar_bench(broker.url, tmp_path, exactly_once=exactly_once, slots=2 if exactly_once else 1) as bench:
        arrived = await lose_both(bench, broker)
        status = await bench.until(lambda status: status.in_flight == 0)
        times = Counter(found.envelope.body for found in arrived)
        doubled = {body for body, count in times.items() if count > 1}
        marked = {found.envelope.body for found in arrived if found.envelope.in_doubt}
        print(f"stored twice {len(doubled)}, marked {len(marked)}, counted {status.counters['in_doubt']}")
        assert set(times) == {b"%d" % number for number in range(MESSAGES)}
        assert doubled <= marked
        assert status.counters["in_doubt"] == len(marked)

        async def recorded() -> bool:
            return {record.original.execution_id for record in await bench.doubts()} == {
                found.envelope.execution_id for found in arrived if found.envelope.in_doubt
            }

        await eventually(recorded)
        assert bool(doubled) is not exactly_once
        assert bool(marked) is not exactly_once


async def test_a_restart_of_the_broker_alone_leaves_no_doubt(broker: BrokerProcess, tmp_path: Path) -> None:
    """Its sidecar remembers. So does the broker when the sidecar alone is killed."""
    async with sidecar_bench(broker.url, tmp_path, ack_wait_s=1.0) as bench:
        await bench.run()
        for number in range(MESSAGES):
            await bench.inject(b"%d" % number)
        broker.kill()
        assert broker.process is not None
        await broker.process.wait()
        await broker.start()
        await eventually(lambda: bench.connection.is_connected)
        await bench.until_done()
        await bench.kill_sidecar()
        for number in range(MESSAGES):
            await bench.inject(b"later %d" % number)
        await bench.start()
        await bench.until_done()
        arrived = await bench.take(2 * MESSAGES)
        assert len({found.envelope.body for found in arrived}) == 2 * MESSAGES
        assert not any(found.envelope.in_doubt for found in arrived)
        assert await bench.waiting("next") == 0
