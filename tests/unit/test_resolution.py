"""A deployment is resolved once, whoever dies in the middle of it and whatever is pushed meanwhile."""

from __future__ import annotations

import contextlib
from random import Random
from typing import Any

from headrace.model.flow_spec import FlowSpec, StepSpec
from services.orchestrator.domain.documents import FlowDocument, change
from services.orchestrator.resolution import Resolver
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock
from tests.simulation.faults import Faults, Network
from tests.simulation.links import Link
from tests.simulation.orchestrators import Registry
from tests.support.memory_bucket import MemoryBucket

SPEC = FlowSpec("realtime", (StepSpec("order", "hook", to=("price",)), StepSpec("price", "work")))


class DiesBeforeTheState(Stores):
    async def write_state(self, *_: Any) -> int:
        raise SystemExit("kill -9")


async def test_a_plan_that_was_written_is_kept_though_latest_has_moved_since() -> None:
    """Else every later attempt would come to another plan and be refused, until the start times out."""
    buckets: list[Any] = [MemoryBucket(name) for name in ("flows", "deployments", "routes", "pins")]
    registry = Registry()
    channel: Any = Link(Network(Random(1), Faults()), "orchestrator").channel(registry.host)
    document = FlowDocument("orders", "realtime", 0.0, next_deployment=2, target=1, live=(1,))
    with contextlib.suppress(SystemExit):
        await Resolver(channel, DiesBeforeTheState("default", *buckets), WallClock()).resolve(document, 1, SPEC, 1)
    first = registry.revisions["work"][-1]
    registry.push("work")
    stores = Stores("default", *buckets)
    await Resolver(channel, stores, WallClock()).resolve(document, 1, SPEC, 1)
    plan, state = await stores.plan("orders", 1), await stores.state("orders", 1)
    assert plan is not None
    assert state is not None
    assert state[0].phase == "PREPARING"
    assert plan.step("price").pin.digest == first
    assert {key.split(".")[0] for key in await stores.pins.keys()} == {
        step.pin.digest.removeprefix("sha256:") for step in plan.steps
    }


async def test_a_start_whose_references_are_not_resolved_yet_is_known_to_listen() -> None:
    buckets: list[Any] = [MemoryBucket(name) for name in ("flows", "deployments", "routes", "pins")]
    nothing: Any = None
    reader = SnapshotReader(Stores("default", *buckets), nothing, nothing, WallClock())
    document = FlowDocument("orders", "realtime", 0.0, next_deployment=2, target=1, target_version=1, live=(1,))
    assert not await reader.started_by_listener(document)
    assert await reader.started_by_listener(change(document, listens=True))
    assert not await reader.started_by_listener(change(document, listens=True, target=0))
