"""A flow that a listener starts takes nothing from people, not even while its start is not resolved yet."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.model.errors import WrongState
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.wire.flow import flow_spec_to_proto
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import WORK, OrchestratorRig, orchestrator_rig

PORT = "name: port\nfunctions:\n  listen: {kind: listener}\n"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def test_a_start_that_is_not_resolved_yet_is_known_to_listen(rig: OrchestratorRig) -> None:
    """What was stored meanwhile would be parked for a trigger that is never called."""
    async with rig.client() as client:
        await rig.push(PORT)
        await rig.push(WORK)
        spec = FlowSpec("realtime", (StepSpec("listen", "port", to=("note",)), StepSpec("note", "work")))
        await client.create_flow("lines", flow_spec_to_proto(spec))
        await client.publish("lines")
        await client.begin_start("lines")
        document, _ = await rig.stores.existing_flow("lines")
        assert document.listens
        # As it is seen until the plan is there; a person's call reads just that.
        with pytest.raises(WrongState) as refused:
            await client.inject("lines", b"{}")
        assert refused.value.reason == "STARTED_BY_LISTENER"

        async def routes() -> str:
            route, _ = await rig.stores.route("lines")
            assert route is not None
            assert not route.trigger
            return route.state

        await eventually(lambda: _is(routes, "RUNNING"))
        assert not [subject for subject in await rig.counts("lines") if "_barrier" not in subject]


async def _is(asked: object, state: str) -> bool:
    return await asked() == state  # type: ignore[operator]
