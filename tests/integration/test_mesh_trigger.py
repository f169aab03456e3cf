"""Triggers without component on a real mesh: no process runs, stimuli go straight to the receiver, laws hold."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.flow_tables import status_text
from headrace.client import AsyncClient
from headrace.model.errors import WrongState
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer, fetch
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow

SCRIBE = ROOT / "tests" / "support" / "components" / "scribe"
WEBHOOK = ROOT / "components" / "webhook"
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
        assert (status.mesh_trigger.step, status.mesh_trigger.to) == ("receive", "act")
        assert "receive  no process  -> act" in status_text(status)
        await the_same_id_once(client, module_mesh, flow)
        await switched_warm(client, module_mesh, flow, tmp_path)
        await changed_by_restart(client, module_mesh, flow, tmp_path)
        await client.stop(flow)


async def the_same_id_once(client: AsyncClient, mesh: RunningMesh, flow: str) -> None:
    """An Idempotency-Key's first answer, a request id's one execution, and what a trace says."""
    first = await post(mesh, flow, b'{"n": 2}', idempotency_key="k")
    again = await post(mesh, flow, b'{"n": 2}', idempotency_key="k")
    assert (first.status, first.body) == (again.status, again.body)
    assert again.headers["headrace-replayed"] == "true"
    execution = first.headers["headrace-execution"]
    trace = await eventually(lambda: told(client, flow, execution))
    assert [attempt.step for attempt in trace.attempts] == ["act"]
    injected = [await client.inject(flow, b"{}", request_id="00000000-0000-4000-8000-000000000001") for _ in range(2)]
    assert [answer.duplicate for answer in injected] == [False, True]
    assert injected[0].execution_id == injected[1].execution_id


async def switched_warm(client: AsyncClient, mesh: RunningMesh, flow: str, folder: Path) -> None:
    """New code of the receiver takes over without a gap: each caller is answered, by one or the other."""
    write_component(folder / "answer", "two")
    await client.push_component(folder / "answer")
    said: list[str] = []

    async def call_on() -> None:
        while said[-3:] != ["two"] * 3:
            answer = await post(mesh, flow)
            assert answer.status == 200, answer.body
            said.append(answer.json()["said"])

    async with asyncio.TaskGroup() as callers:
        callers.create_task(call_on())
        await eventually(lambda: said.count("one") > 3)
        await client.restart(flow)
    assert "".join(word[0] for word in said).strip("o").strip("t") == "", said


async def changed_by_restart(client: AsyncClient, mesh: RunningMesh, flow: str, folder: Path) -> None:
    """A process for the trigger, and back again: only by a restart; what comes meanwhile is parked and answered."""
    bare = (folder / "flow.yaml").read_text()
    hook = f"receive: {{component: {WEBHOOK}, function: receive, to: [act]}}"
    for text, entry in ((bare.replace("receive: {to: [act]}", hook), "receive"), (bare, "act")):
        (folder / "flow.yaml").write_text(text)
        await client.apply(folder / "flow.yaml")
        with pytest.raises(WrongState, match=f"what comes in goes to step '{entry}'") as refused:
            await client.publish(flow)
        assert refused.value.reason == "NEEDS_RESTART"
        async with asyncio.TaskGroup() as callers:
            publishing = callers.create_task(client.publish(flow, strategy="RESTART"))
            asked = [callers.create_task(post(mesh, flow))]
            while not publishing.done():
                asked.append(callers.create_task(post(mesh, flow)))
                await asyncio.sleep(0.02)  # tidy: pace
        answers = [task.result() for task in asked]
        assert {answer.status for answer in answers} == {200}, answers
        assert len({answer.json()["id"] for answer in answers}) == len(answers)
        assert bool(mesh.pids_of("sidecar", flow, "receive")) == (entry == "receive")


async def told(client: AsyncClient, flow: str, execution: str) -> Any:
    trace = await client.get_trace(execution, flow=flow)
    return trace if trace.attempts else None


async def test_a_timer_without_component_ticks_its_receiver_in_order_once(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    """The receiver is keyed, so who publishes a tick places it; its sidecar and the leader are killed meanwhile."""
    out = tmp_path / "ticks.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(
            client,
            tmp_path / "flow.yaml",
            f"""
name: direct-timer
steps:
  tick: {{every: 50ms, to: [write]}}
  write: {{component: {SCRIBE}, function: write, config: {{path: {out}}}, key: "body:/every", slots: 2}}
""",
        )
        await eventually(lambda: len(read_lines(out)) > 10)
        module_mesh.kill("sidecar", flow, "write")
        module_mesh.kill("orchestrator")
        before = len(read_lines(out))
        await eventually(lambda: len(read_lines(out)) > before + 20, within_s=20)
        await client.run_now(flow)
        await eventually(lambda: any(line["body"].get("run_now") for line in read_lines(out)))
        status = await client.get_status(flow)
        assert (status.timer.step, status.mesh_trigger.step, status.mesh_trigger.to) == ("tick", "tick", "write")

        async def counted() -> bool:  # how far a timer is stands in the store once a second
            return (await client.get_status(flow)).timer.ticks > 30

        await eventually(counted)
        assert [step.step for step in status.steps] == ["write"]
        await client.stop(flow)
    lines = list({line["id"]: line for line in read_lines(out)}.values())  # a killed step may write a message twice
    instants = [line["body"]["unix_ms"] for line in lines if not line["body"].get("run_now")]
    assert instants == list(range(instants[0], instants[-1] + 1, 50))
