"""Triggers without component on a real mesh: no process runs, stimuli go straight to the receiver, laws hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow

pytestmark = pytest.mark.timeout(90)

ACT = """
from headrace.sdk import Component, Context

component = Component()
WORD = "{word}"


@component.action
async def act(order: dict, ctx: Context) -> None:
    await ctx.reply({{"said": WORD, "order": order, "headers": ctx.message.headers, "id": ctx.message.id}})
"""


def write_component(folder: Path, word: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "component.yaml").write_text(f"name: {folder.name}\nfunctions: {{act: {{kind: action}}}}\n")
    (folder / "component.py").write_text(ACT.format(word=word))


async def post(mesh: RunningMesh, flow: str, body: bytes = b"{}", **headers: str) -> HttpAnswer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await fetch(mesh.gateway, "POST", f"/hook/{flow}", body, {"content-type": "application/json", **named})


async def test_a_webhook_without_component_is_answered_by_its_receiver(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    write_component(tmp_path / "answer", "one")
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            "name: direct\nreply_timeout: 10s\nsteps:\n  receive: {to: [act]}\n  act: {component: ./answer}\n",
        )
        answer = await post(module_mesh, flow, b'{"n": 1}', x_mine="yes")
        assert answer.status == 200, answer.body
        said = answer.json()
        assert (said["said"], said["order"], said["headers"]["x-mine"]) == ("one", {"n": 1}, "yes")
        assert not module_mesh.pids_of("sidecar", flow, "receive")
        assert len(module_mesh.pids_of("sidecar", flow, "act")) == 1
        status = await client.get_status(flow)
        assert [step.step for step in status.steps] == ["act"]
        assert status.state == flow_pb2.FLOW_STATE_RUNNING
        await client.stop(flow)
