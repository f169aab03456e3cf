"""A sidecar and its component, as processes, on a real broker."""

from __future__ import annotations

from pathlib import Path

from headrace.edge.broker_process import BrokerProcess
from headrace.model.message_ids import output_message_id
from tests.support.sidecar import STEP, sidecar_bench


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
        print(dict(status.stage_ms))
