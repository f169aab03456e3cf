"""Trouble of the mesh itself, injected from outside: `why` names it, through the API or, where that does not answer,
by what the command finds out itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from headrace.client import AsyncClient
from tests.robustness.moody_flow import MoodyFlow
from tests.support.commands import headrace
from tests.support.mesh import RunningMesh

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def flow_name(mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A flow that is healthy."""
    flow = MoodyFlow(mesh, tmp_path_factory.mktemp("healthy"), AsyncClient(mesh.api, timeout_s=30))

    async def make() -> None:
        async with flow.client:
            await flow.push()
            await flow.run()

    async def end() -> None:
        async with flow.client:
            await flow.remove()

    asyncio.run(make())
    yield flow.name
    asyncio.run(end())


async def test_nothing_is_wrong(mesh: RunningMesh, flow_name: str) -> None:
    async with AsyncClient(mesh.api) as client:
        answer = await client.explain(flow_name)
    assert answer.healthy
    assert [item.cause for item in answer.findings] == ["NO_INPUT", "NOTHING_WRONG"]
    assert [step.step for step in answer.steps] == ["entry", "work", "last"]
    assert headrace("why", flow_name, data=mesh.data).ok().startswith(f"{flow_name}: nothing is wrong")
