"""What is left, and what goes on, when `headrace up`, its agent, or a part of an instance is killed."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.edge.process_table import children_of, is_running, is_zombie
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh

COMPONENT = """
import subprocess
import sys

from headrace.sdk import Component, Context

component = Component()


@component.init
async def init(ctx: Context) -> None:
    # A grandchild that nobody ties: what a careless component leaves behind.
    subprocess.Popen([sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"], start_new_session=True)


@component.trigger
async def receive(body: bytes, ctx: Context) -> bytes:
    return body


@component.action
async def answer(body: bytes, ctx: Context) -> None:
    await ctx.reply(body)
"""
MANIFEST = "name: echo\nfunctions: {receive: {kind: trigger}, answer: {kind: action}}\n"
FLOW = """
name: echo
type: realtime
reply_timeout: 5s
steps:
  receive: {component: ./echo, function: receive, to: [answer]}
  answer: {component: ./echo, function: answer}
"""


def write_flow(folder: Path) -> Path:
    (folder / "echo").mkdir()
    (folder / "echo" / "component.py").write_text(COMPONENT)
    (folder / "echo" / "component.yaml").write_text(MANIFEST)
    (folder / "flow.yaml").write_text(FLOW)
    return folder / "flow.yaml"


async def start_flow(mesh: RunningMesh, folder: Path) -> None:
    async with AsyncClient(mesh.api) as client:
        await client.apply(write_flow(folder))
        await client.publish("echo")
        await client.start("echo", timeout_s=30)


async def running(mesh: RunningMesh) -> flow_pb2.FlowStatus | None:
    """The flow's status once it runs with every instance up."""
    async with AsyncClient(mesh.api) as client:
        status = await client.get_status("echo")
    up = all(mesh.pids_of("component", "echo", step.step) for step in status.steps)
    return status if status.state == flow_pb2.FLOW_STATE_RUNNING and up else None


async def digests(mesh: RunningMesh) -> dict[str, str]:
    status = await eventually(lambda: running(mesh), within_s=20, every_s=0.1)
    assert status is not None
    return {step.step: step.pin.digest for step in status.steps}


async def test_kill_of_up_with_a_running_flow_leaves_nothing_and_the_next_one_goes_on(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        await start_flow(mesh, tmp_path)
        pins = await digests(mesh)
        stray = [pid for pid in mesh.processes() if not _tied(pid)]
        assert len(stray) == 2
        mesh.kill("up")
        mesh.process.wait(5)
        # Everything dies with it, also what a component started and nobody ties: the agent ends that, last of all.
        await eventually(lambda: mesh.processes() == [], within_s=3)
    with start_mesh(tmp_path) as mesh:
        assert not any(is_running(pid) for pid in stray)
        assert await digests(mesh) == pins


def _tied(pid: int) -> bool:
    return b"signal.pause" not in Path(f"/proc/{pid}/cmdline").read_bytes()


async def test_a_flow_survives_its_sidecar_and_the_agent_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        await start_flow(mesh, tmp_path)
        pins = await digests(mesh)

        component = mesh.pid_of("component", "echo", "answer")
        mesh.kill("sidecar", "echo", "answer")
        await eventually(lambda: not is_running(component), within_s=2)
        assert await digests(mesh) == pins

        await eventually(lambda: len(instance_processes(mesh)) == 6)  # two sidecars, components, grandchildren
        before = instance_processes(mesh)
        mesh.kill("agent")
        await eventually(lambda: not any(is_running(pid) for pid in before), within_s=3)
        assert await digests(mesh) == pins
        await eventually(lambda: not any(is_zombie(pid) for pid in children_of(mesh.process.pid)))

        began = time.monotonic()
        assert mesh.stop(signal.SIGINT) == 0
        assert time.monotonic() - began < 5
        assert mesh.processes() == []


def instance_processes(mesh: RunningMesh) -> list[int]:
    return [pid for pid in mesh.processes() if "HEADRACE_INSTANCE" in _environment(pid)]


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    except OSError:
        return ""
