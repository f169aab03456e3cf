"""Watches of the API on a real mesh: what they tell, and what a client gets that was away."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient, NotFound, OutOfRange
from headrace.wire.flow_file import FlowFile, load_flow_file
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

FLOW = "name: {name}\nsteps:\n  receive: {{component: {webhook}, function: receive}}\n"


@pytest.fixture
def flow_file(tmp_path: Path) -> FlowFile:
    """A flow of one step, under a name that no other test uses."""
    file = tmp_path / "flow.yaml"
    file.write_text(FLOW.format(name=f"w-{secrets.token_hex(4)}", webhook=ROOT / "components" / "webhook"))
    return load_flow_file(file)


class Follower:
    """Takes what a watch says, until it is left."""

    def __init__(self, watch: Any) -> None:
        self.messages: list[Any] = []
        self._task = asyncio.create_task(self._follow(watch))

    async def _follow(self, watch: Any) -> None:
        async with aclosing(watch) as messages:
            async for message in messages:
                self.messages.append(message)

    async def until(self, reached: Callable[[list[Any]], object]) -> str:
        """Until what came satisfies it; the token of where the watch is then."""
        await eventually(lambda: reached(self.messages) or (self._task.done() and self._task.result()), within_s=10)
        return str(self.messages[-1].revision)

    async def leave(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


def flows_in(messages: list[Any]) -> dict[str, flow_pb2.Flow]:
    return {flow.name: flow for message in messages for flow in message.flows}


def deployments_in(messages: list[Any]) -> list[tuple[int, str]]:
    return [
        (item.number, flow_pb2.DeploymentPhase.Name(item.phase).removeprefix("DEPLOYMENT_PHASE_"))
        for message in messages
        for item in message.deployments
    ]


async def test_every_watch_tells_of_a_flow_s_life(module_mesh: RunningMesh, flow_file: FlowFile) -> None:
    name = f"flows/{flow_file.name}"
    async with AsyncClient(module_mesh.api) as client:
        flows, components = Follower(client.watch_flows()), Follower(client.watch_components())
        await flows.until(lambda seen: seen and seen[-1].synced)
        await client.apply(flow_file)
        await flows.until(lambda seen: name in flows_in(seen))
        await components.until(lambda seen: any(c.name == "components/webhook" for m in seen for c in m.components))
        deployments = Follower(client.watch_deployments(flow_file.name))
        operations = Follower(client.watch_operations(flow_file.name))
        await client.publish(flow_file.name)
        await client.start(flow_file.name)
        await flows.until(lambda seen: flows_in(seen)[name].state == flow_pb2.FLOW_STATE_RUNNING)
        await deployments.until(lambda seen: (1, "ACTIVE") in deployments_in(seen))
        await operations.until(lambda seen: sum(o.done for m in seen for o in m.operations) >= 2)
        await client.stop(flow_file.name)
        await deployments.until(lambda seen: deployments_in(seen)[-1] == (1, "RETIRED"))
        await client.delete_flow(flow_file.name)
        await flows.until(lambda seen: name in seen[-1].deleted)
        await deployments.until(lambda seen: f"{name}/deployments/1" in seen[-1].deleted)
        assert (await client.server_info()).open_streams == 4
        for follower in (flows, components, deployments, operations):
            await follower.leave()

        async def ended() -> bool:
            return (await client.server_info()).open_streams == 0

        await eventually(ended)


async def test_who_was_away_gets_what_it_missed_and_a_watch_outlives_a_restart(
    module_mesh: RunningMesh, flow_file: FlowFile
) -> None:
    name = f"flows/{flow_file.name}"
    async with AsyncClient(module_mesh.api) as client:
        first = Follower(client.watch_flows())
        revision = await first.until(lambda seen: seen and seen[-1].synced)
        await first.leave()
        applied = await client.apply(flow_file)
        await client.update_draft(flow_file.name, applied.flow.draft)
        gone = f"gone-{secrets.token_hex(4)}"
        await client.create_flow(gone, applied.flow.draft)
        await client.delete_flow(gone)
        again = Follower(client.watch_flows(revision=revision))
        await again.until(lambda seen: seen and seen[-1].synced)
        told = [flow.name for message in again.messages for flow in message.flows]
        assert told == [name], "what changed, once, as it is now"
        assert [item for message in again.messages for item in message.deleted] == [f"flows/{gone}"]
        # The same stream goes on by itself over a restart of the orchestrator.
        module_mesh.kill("orchestrator")
        other = f"other-{secrets.token_hex(4)}"

        async def created() -> bool:
            try:
                await client.create_flow(other, applied.flow.draft)
            except Exception as error:
                raise AssertionError(str(error)) from error
            return True

        await eventually(created, within_s=20)
        await again.until(lambda seen: f"flows/{other}" in flows_in(seen))
        await again.leave()
        for flow in (flow_file.name, other):
            await client.delete_flow(flow)


async def test_a_revision_of_another_mesh_says_to_begin_anew(module_mesh: RunningMesh) -> None:
    from headrace.model.opaque_tokens import make_token

    async with AsyncClient(module_mesh.api) as client:
        foreign = make_token("a watch of flows", "2020-01-01T00:00:00+00:00", "7")
        with pytest.raises(OutOfRange) as caught:
            await anext(client.watch_flows(revision=foreign))
        assert (caught.value.reason, "without a revision" in caught.value.next_step) == ("REVISION_GONE", True)
        with pytest.raises(NotFound):
            await anext(client.watch_deployments("nowhere"))
