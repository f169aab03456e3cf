"""Ordinary flows on a real mesh: steps sleep when idle, without a process, and a message wakes them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.api.diagnosis.v1 import diagnosis_pb2
from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.client import AsyncClient
from headrace.edge.process_table import is_running
from headrace.model.errors import Unavailable, WrongState
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.http_connection import fetch
from tests.support.jsonl import read_lines
from tests.support.mesh import RunningMesh
from tests.support.small_mesh_flow import run_flow

WEBHOOK = ROOT / "components" / "webhook"
HOOKED = ROOT / "tests" / "support" / "components" / "hooked"
ONCE = ("startup", "shutdown")
ECHO = ROOT / "tests" / "support" / "components" / "echo"
SLEEPING = flow_pb2.FLOW_STATE_SLEEPING
pytestmark = pytest.mark.timeout(90)


def flow_file(name: str, flow_type: str = "ordinary") -> str:
    return f"""
name: {name}
type: {flow_type}
reply_timeout: 20s
steps:
  receive: {{component: {WEBHOOK}, function: receive, to: [answer], idle_timeout: 300ms}}
  answer: {{component: {ECHO}, idle_timeout: 300ms}}
"""


async def ask(mesh: RunningMesh, flow: str, body: Any) -> Any:
    """The flow's answer to one request."""
    headers = {"content-type": "application/json"}
    answer = await fetch(mesh.gateway, "POST", f"/hook/{flow}", json.dumps(body).encode(), headers)
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def processes(mesh: RunningMesh, flow: str) -> list[int]:
    return [pid for step in ("receive", "answer") for role in ("sidecar", "component")
            for pid in mesh.pids_of(role, flow, step)]  # fmt: skip


async def tail(client: AsyncClient, flow: str) -> list[Any]:
    return [line async for line in client.tail_logs(flow, lines=200, follow=False)]


async def asleep(client: AsyncClient, flow: str) -> bool:
    try:
        return bool((await client.get_status(flow)).state == SLEEPING)
    except Unavailable:  # the orchestrator was killed just now
        return False


async def test_idle_the_same_flow_keeps_its_processes_in_one_type_and_none_in_the_other(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    async with AsyncClient(module_mesh.api) as client:
        ordinary = await run_flow(client, tmp_path / "o.yaml", flow_file("naps"))
        realtime = await run_flow(client, tmp_path / "r.yaml", flow_file("stays", "realtime"))
        await eventually(lambda: asleep(client, ordinary))
        assert processes(module_mesh, ordinary) == []
        assert len(processes(module_mesh, realtime)) == 4
        status = await client.get_status(ordinary)
        assert {step.state for step in status.steps} == {sidecar_pb2.STEP_STATE_SLEEPING}
        assert not status.problems
        found = (await client.explain(ordinary)).findings
        assert not [item for item in found if item.severity != diagnosis_pb2.SEVERITY_NOTICE], found
        for number in range(3):
            began = time.monotonic()
            answer = await ask(module_mesh, ordinary, {"n": number})
            assert answer["body"] == {"n": number}
            assert answer["deployment"] == 1
            assert time.monotonic() - began < 5
            await eventually(lambda: asleep(client, ordinary))
        assert len(processes(module_mesh, realtime)) == 4


async def test_the_type_changes_only_while_the_flow_is_stopped(module_mesh: RunningMesh, tmp_path: Path) -> None:
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(client, tmp_path / "flow.yaml", flow_file("typed"))
        for state in ("RUNNING", "SLEEPING"):
            with pytest.raises(WrongState, match=state):
                await client.set_type(flow, "realtime")
            (tmp_path / "flow.yaml").write_text(flow_file("typed", "realtime"))
            with pytest.raises(WrongState, match="change its type"):
                await client.apply(tmp_path / "flow.yaml")
            await eventually(lambda: asleep(client, flow))
        await client.stop(flow)
        changed = await client.set_type(flow, "realtime")
        assert (changed.type, changed.latest_version) == (flow_pb2.FLOW_TYPE_REALTIME, 2)
        assert (await client.set_type(flow, "realtime")).latest_version == 2
        await client.start(flow)
        assert (await ask(module_mesh, flow, 1))["body"] == 1
        began = time.monotonic()
        await eventually(lambda: time.monotonic() > began + 1.0)  # three times its idle_timeout
        assert len(processes(module_mesh, flow)) == 4
        history = [entry.what for entry in (await client.list_history(flow))[0]]
        assert history.count("set-type") == 1
        await client.stop(flow)


async def test_a_woken_step_runs_the_pinned_revision(module_mesh: RunningMesh, tmp_path: Path) -> None:
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(client, tmp_path / "flow.yaml", flow_file("pinned-naps"))
        await eventually(lambda: asleep(client, flow))
        before = {step.step: step.pin.digest for step in (await client.get_status(flow)).steps}
        newer = tmp_path / "echo"
        newer.mkdir()
        for file in ECHO.iterdir():
            if file.is_file():
                (newer / file.name).write_text(file.read_text().replace('"code": 1', '"code": 2'))
        await client.push_component(newer)
        assert (await ask(module_mesh, flow, {}))["code"] == 1
        assert {step.step: step.pin.digest for step in (await client.get_status(flow)).steps} == before
        await eventually(lambda: asleep(client, flow))
        await client.restart(flow)
        assert (await ask(module_mesh, flow, {}))["code"] == 2


def hooked(out: Path, code: int, *, more: str = "") -> str:
    return f"""
name: hooked
type: ordinary
reply_timeout: 40s
steps:
  receive: {{component: hooked@{code}, function: receive, config: {{path: {out}{more}}}, to: [answer],
            idle_timeout: 300ms, replicas: 2}}
  answer: {{component: {ECHO}, idle_timeout: 300ms}}
"""


async def test_hooks_run_once_whoever_dies(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out, source = tmp_path / "out.jsonl", tmp_path / "hooked"
    shutil.copytree(HOOKED, source)
    async with AsyncClient(module_mesh.api) as client:
        await client.push_component(source)
        flow = await run_flow(client, tmp_path / "flow.yaml", hooked(out, 1))
        assert [line["hook"] for line in read_lines(out)] == ["init", "init", "startup"]
        code = source / "component.py"
        code.write_text(code.read_text().replace("CODE = 1", "CODE = 2"))
        await client.push_component(source)
        await eventually(lambda: asleep(client, flow))
        await ask(module_mesh, flow, {})
        sidecar = module_mesh.pid_of("sidecar", flow, "receive")
        module_mesh.kill("component", flow, "receive")
        module_mesh.kill("sidecar", flow, "receive")
        module_mesh.kill("orchestrator")
        # What is handed to a dying replica waits for its ack deadline, since there is another one.
        await eventually(lambda: not is_running(sidecar))
        with contextlib.suppress(TimeoutError):
            await ask(module_mesh, flow, {})
        await eventually(lambda: asleep(client, flow), within_s=40)
        await client.stop(flow)
        told = read_lines(out)
        once = [(line["hook"], line["code"], line.get("startup")) for line in told if line["hook"] in ONCE]
        assert once == [("startup", 1, None), ("shutdown", 1, {"subscribed": f"{flow}-1"})]
        assert told[-2]["hook"] == "shutdown" or told[-1]["hook"] == "shutdown"


async def test_hooks_that_fail_are_logged_and_ignored(module_mesh: RunningMesh, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    async with AsyncClient(module_mesh.api) as client:
        await client.push_component(HOOKED)
        text = hooked(out, 1, more=", fail: true").replace("name: hooked", "name: hooks-fail")
        flow = await run_flow(client, tmp_path / "flow.yaml", text.replace("hooked@1", "hooked"))
        assert (await ask(module_mesh, flow, 1))["body"] == 1
        await client.restart(flow)  # a deployment of its own: its hooks run, too
        await client.stop(flow)
        lines = [line.message for line in await tail(client, flow)]
    assert sum("the startup hook failed, which is ignored" in line for line in lines) == 2
    assert sum("the shutdown hook failed, which is ignored" in line for line in lines) == 2
    told = [line["hook"] for line in read_lines(out) if line["hook"] in ONCE]
    assert told == ["startup", "startup", "shutdown", "shutdown"]


async def test_a_storm_on_sleeping_steps_is_answered_whole(module_mesh: RunningMesh, tmp_path: Path) -> None:
    async with AsyncClient(module_mesh.api) as client:
        flow = await run_flow(client, tmp_path / "flow.yaml", flow_file("storm"))
        for _ in range(2):
            await eventually(lambda: asleep(client, flow))
            answers = await asyncio.gather(*(ask(module_mesh, flow, {"n": number}) for number in range(40)))
            assert [answer["body"]["n"] for answer in answers] == list(range(40))
