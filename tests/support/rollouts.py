"""A flow of two steps that runs on a rig, and questions about which of its deployments does what."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.client import AsyncClient
from headrace.model.deployment import DeploymentPhase
from headrace.model.flow_spec import FlowSpec
from headrace.wire.flow import flow_spec_to_proto
from tests.support.orchestrator_rig import OrchestratorRig, chain, published

FLOW = "orders"


async def running(rig: OrchestratorRig, client: AsyncClient, spec: FlowSpec | None = None) -> None:
    await published(rig, client, FLOW, spec or chain("order", "price"))
    await client.start(FLOW)


async def edited(client: AsyncClient, spec: FlowSpec, **changes: Any) -> None:
    """A draft whose last step has another config."""
    steps = (*spec.steps[:-1], msgspec.structs.replace(spec.steps[-1], config={"limit": 2}))
    await client.update_draft(FLOW, flow_spec_to_proto(msgspec.structs.replace(spec, steps=steps, **changes)))


async def digest_of(client: AsyncClient, step: str = "price") -> str:
    status = await client.get_status(FLOW)
    return next(item.pin.digest for item in status.steps if item.step == step)


async def phase_of(rig: OrchestratorRig, deployment: int) -> str:
    found = await rig.stores.state(FLOW, deployment)
    return str(found[0].phase) if found else ""


async def ingress_of(rig: OrchestratorRig) -> str:
    found = await rig.stores.flow(FLOW)
    assert found is not None
    return found[0].ingress if found[0].ingress_confirmed else ""


async def phase_is(rig: OrchestratorRig, deployment: int, phase: DeploymentPhase) -> bool:
    return await phase_of(rig, deployment) == phase


async def ingress_is(rig: OrchestratorRig, owner: str) -> bool:
    return await ingress_of(rig) == owner
