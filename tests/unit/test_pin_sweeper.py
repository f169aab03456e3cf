"""Pins of deployments that are over go; those of live ones and of versions stay."""

from __future__ import annotations

from typing import Any

from services.orchestrator.domain.documents import FlowDocument, encode, flow_key
from services.orchestrator.pin_sweeper import sweep_pins
from services.orchestrator.stores import Stores
from tests.support.memory_bucket import MemoryBucket


async def test_only_pins_of_deployments_that_are_over_are_removed() -> None:
    buckets: list[Any] = [MemoryBucket(name) for name in ("flows", "deployments", "routes", "pins")]
    stores = Stores("default", *buckets)
    await stores.flows.create(flow_key("orders"), encode(FlowDocument("orders", "realtime", 0.0, live=(2,))))
    for flow, holder in (("orders", "d1"), ("orders", "d2"), ("orders", "v1"), ("gone", "d7")):
        await stores.pin({"sha256:" + "a" * 64}, flow, holder, holder)
    assert await sweep_pins(stores) == 2
    assert sorted(key.partition(".")[2] for key in await stores.pins.keys()) == ["orders.d2", "orders.v1"]
