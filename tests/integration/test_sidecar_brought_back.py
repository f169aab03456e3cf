"""Inputs that were acknowledged and come again, since the orchestrator let their consumer begin anew.

The stream keeps what is acknowledged here: so each input is what a killed broker leaves when it lost a removal.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from headrace.edge.broker_process import BrokerProcess
from headrace.model import subjects
from tests.support.sidecar import SidecarBench, sidecar_bench
from tests.support.step_assets import STEP


@contextlib.asynccontextmanager
async def keeping_bench(broker: BrokerProcess, folder: Path, **fields: Any) -> AsyncIterator[SidecarBench]:
    async with sidecar_bench(broker.url, folder, **fields) as bench:
        await bench.prepare()
        await bench.assets.delete_stream(bench.stream)
        await bench.assets.create_stream({**bench.stream_config, "retention": "limits"})
        for step in bench.receivers if bench.keyed else (STEP, *bench.receivers):
            await bench.make_consumer(step)
        for slot, generation in bench.leases.items():
            await bench.make_slot_consumer(slot, generation)
        await bench.start()
        yield bench


async def bring_back(bench: SidecarBench, durable: str) -> None:
    info = await bench.assets.consumer_info(bench.stream, durable)
    assert info is not None
    assert (info["num_pending"], info["num_ack_pending"]) == (0, 0)
    await bench.assets.reset_consumer(bench.stream, durable, to_sequence=1)


async def test_a_plain_step_knows_what_it_finished(broker: BrokerProcess, tmp_path: Path) -> None:
    async with keeping_bench(broker, tmp_path) as bench:
        for label in ("one", "two"):
            await bench.inject(b"in", label)
        await bench.until(lambda status: status.counters["processed"] == 2 and status.in_flight == 0)
        await bring_back(bench, subjects.step_consumer(bench.deployment, STEP))
        status = await bench.until(lambda status: status.counters["duplicates"] == 2)
        assert (status.counters["processed"], status.counters["redelivered"], status.counters["in_doubt"]) == (2, 2, 0)
        assert await bench.waiting("next") == 2


async def test_what_a_new_process_does_not_know_is_in_doubt(broker: BrokerProcess, tmp_path: Path) -> None:
    async with keeping_bench(broker, tmp_path, duplicate_window_s=0.1) as bench:
        await bench.inject(b"in", "one")
        await bench.until(lambda status: status.counters["processed"] == 1 and status.in_flight == 0)
        await bench.kill_sidecar()
        await bench.start()
        await bench.until_active()
        await bench.inject(b"in", "two")
        await bench.until(lambda status: status.counters["processed"] == 1 and status.in_flight == 0)
        await bring_back(bench, subjects.step_consumer(bench.deployment, STEP))
        status = await bench.until(lambda status: status.counters["received"] == 3 and status.in_flight == 0)
        assert (status.counters["redelivered"], status.counters["in_doubt"]) == (2, 1)
        marked = [arrived.envelope.in_doubt for arrived in await bench.take(3)]
        assert marked == [False, False, True]


async def test_the_cursor_of_a_keyed_step_covers_what_comes_again(broker: BrokerProcess, tmp_path: Path) -> None:
    async with keeping_bench(broker, tmp_path, exactly_once=True) as bench:
        for label in ("one", "two"):
            await bench.inject(b"in", label)
        await bench.until(lambda status: status.counters["processed"] == 2 and status.in_flight == 0)
        durable = subjects.slot_consumer(bench.deployment, STEP, 0, 1)
        await bring_back(bench, durable)
        status = await bench.until(lambda status: status.counters["duplicates"] >= 2)
        assert (status.counters["processed"], status.counters["slots_lost"]) == (2, 0)
        assert await bench.waiting("next") == 2
        await bench.until(lambda status: status.in_flight == 0)
        info = await bench.assets.consumer_info(bench.stream, durable)
        assert info is not None
        assert (info["num_ack_pending"], info["ack_floor"]["stream_seq"]) == (0, info["delivered"]["stream_seq"])
