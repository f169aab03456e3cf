"""A keyed step: slots, order by key, fenced commits; one real sidecar on a real broker."""

from __future__ import annotations

import json
from pathlib import Path

from headrace.edge.broker_process import BrokerProcess
from tests.support.sidecar import sidecar_bench

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
