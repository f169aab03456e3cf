"""The client SDK, both faces, against a real mesh."""

from __future__ import annotations

import asyncio
import os
import secrets
import subprocess
import sys
from contextlib import aclosing
from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient, Client
from headrace.model.errors import Conflict, InvalidInput, NotFound, WrongState
from headrace.wire.flow_file import FlowFile, load_flow_file
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh

FLOW = """
name: {name}
reply_timeout: 5s
steps:
  receive: {{component: {webhook}, function: receive}}
"""


@pytest.fixture
def flow_file(tmp_path: Path) -> FlowFile:
    """A flow of one step, under a name that no other test uses."""
    file = tmp_path / "flow.yaml"
    file.write_text(FLOW.format(name=f"one-{secrets.token_hex(4)}", webhook=ROOT / "components" / "webhook"))
    return load_flow_file(file)


async def test_a_flow_from_apply_to_delete_watched(module_mesh: RunningMesh, flow_file: FlowFile) -> None:
    name = flow_file.name
    async with AsyncClient(module_mesh.api) as client:
        applied = await client.apply(flow_file)
        assert (applied.change, applied.components[0].component) == ("created", "webhook")
        assert (await client.apply(flow_file)).change == "unchanged"
        assert (await client.publish(name)).version == 1
        seen: list[int] = []

        async def watch() -> None:
            async with aclosing(client.watch_status(name)) as statuses:
                async for status in statuses:
                    if not seen or seen[-1] != status.state:
                        seen.append(status.state)
                    if flow_pb2.FLOW_STATE_RUNNING in seen and status.state == flow_pb2.FLOW_STATE_STOPPED:
                        return

        async with asyncio.timeout(40), asyncio.TaskGroup() as tasks:
            tasks.create_task(watch())
            await eventually(lambda: seen)
            told: list[str] = []
            started = await client.start(name, progress=lambda now: told.append(now.verb))
            assert (started.version, started.deployment) == (1, 1)
            assert set(told) == {"start"}
            with pytest.raises(WrongState):
                await client.delete_flow(name)
            first = await client.inject(name, b"{}", request_id="the-same")
            again = await client.inject(name, b"{}", request_id="the-same")
            assert (again.execution_id, first.duplicate, again.duplicate) == (first.execution_id, False, True)

            async def counted() -> bool:
                phases = (await client.hops(name)).phases
                return any(row.step == "receive" and row.phase == "component" and row.count == 1 for row in phases)

            await eventually(counted)
            await client.stop(name)
        assert seen[0] == flow_pb2.FLOW_STATE_STOPPED
        assert flow_pb2.FLOW_STATE_RUNNING in seen
        (deployment,) = await client.list_deployments(name)
        assert deployment.pins[0].digest == (await client.resolve_reference("webhook")).digest
        await client.delete_flow(name)
        with pytest.raises(NotFound):
            await client.get_flow(name)


async def test_an_old_etag_is_a_conflict_and_a_bad_spec_names_its_field(
    module_mesh: RunningMesh, flow_file: FlowFile
) -> None:
    async with AsyncClient(module_mesh.api) as client:
        flow = (await client.apply(flow_file)).flow
        spec = flow.draft
        await client.update_draft(flow_file.name, spec, etag=flow.etag)
        with pytest.raises(Conflict):
            await client.update_draft(flow_file.name, spec, etag=flow.etag)
        wrong = flow_pb2.FlowSpec()
        wrong.CopyFrom(spec)
        wrong.steps[0].to.append("nobody")
        with pytest.raises(InvalidInput) as caught:
            await client.update_draft(flow_file.name, wrong, validate_only=True)
        assert "to[0]" in caught.value.violations[0].field
        await client.delete_flow(flow_file.name)


def test_the_sync_face_from_a_plain_thread(module_mesh: RunningMesh, flow_file: FlowFile) -> None:
    with Client(module_mesh.api) as client:
        assert client.server_info().profile == "fast"
        client.apply(flow_file)
        client.publish(flow_file.name)
        assert client.start(flow_file.name).deployment == 1
        assert next(client.watch_status(flow_file.name)).state == flow_pb2.FLOW_STATE_RUNNING
        assert flow_file.name in [flow.name.removeprefix("flows/") for flow in client.list_flows()]
        assert list(client.tail_logs(flow_file.name, lines=5)) is not None
        client.stop(flow_file.name, drop=True)
        client.delete_flow(flow_file.name)


async def test_the_client_outlives_a_restart_of_the_orchestrator(module_mesh: RunningMesh, flow_file: FlowFile) -> None:
    async with AsyncClient(module_mesh.api) as client:
        await client.apply(flow_file)
        await client.publish(flow_file.name)
        killed = module_mesh.kill("orchestrator")
        started = await asyncio.wait_for(_start_when_it_is_back(client, flow_file.name), 40)
        assert started.version == 1
        assert module_mesh.pid_of("orchestrator") != killed
        await client.stop(flow_file.name)
        await client.delete_flow(flow_file.name)


async def _start_when_it_is_back(client: AsyncClient, flow: str) -> flow_pb2.FlowOperationResult:
    async def answers() -> bool:
        await client.server_info()
        return True

    async def once() -> bool:
        try:
            return await answers()
        except Exception as error:
            raise AssertionError(str(error)) from error

    await eventually(once, within_s=20)
    return await client.start(flow)


@pytest.mark.parametrize(
    ("example", "says"),
    [
        ("sync_client.py", ["\nanswer: {", "in flight:", "stopped"]),
        ("async_client.py", ["flow: flows/orders runs", "execution: "]),
    ],
)
def test_the_worked_examples_run_as_they_stand(module_mesh: RunningMesh, example: str, says: list[str]) -> None:
    file = ROOT / "examples" / "client" / example
    assert file.read_text().strip() in (ROOT / "docs" / "client.md").read_text(), "docs/client.md shows it"
    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=ROOT,
        env={**os.environ, "HEADRACE_DATA": str(module_mesh.data)},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stderr
    assert all(words in done.stdout for words in says), done.stdout
