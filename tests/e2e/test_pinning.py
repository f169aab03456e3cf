"""Law 1 in a real mesh: a deployment runs the digests it was started with, whatever dies while newer code is there."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from headrace.api.flow.v1 import flow_pb2
from headrace.edge.process_table import is_running
from tests.support.eventually import eventually
from tests.support.http_connection import HttpAnswer
from tests.support.mesh import start_mesh
from tests.support.small_flow import SmallFlow, replying


async def test_newer_code_is_run_by_a_new_deployment_only(tmp_path: Path) -> None:
    with start_mesh(tmp_path) as mesh:
        flow = SmallFlow.write(mesh, tmp_path / "flow", replying("old"))
        flow.run()
        pinned = pins(flow.status())
        flow.push(replying("new"))
        for role in ("component", "sidecar", "orchestrator", "registry", "agent", "broker"):
            before = mesh.pid_of("component", flow.name, "act")
            killed = mesh.kill(role, flow.name, "act")
            await eventually(partial(has_ended, killed))
            if role in ("component", "sidecar", "agent"):
                await eventually(partial(has_ended, before))
            answer = await answered(flow)
            assert (answer.json(), answer.headers["headrace-deployment"]) == ({"said": "old"}, "1"), role
        mesh.kill("up")
        mesh.process.wait(5)
    with start_mesh(tmp_path) as mesh:
        again = SmallFlow(flow.name, flow.folder, mesh)
        answer = await answered(again)
        assert answer.json() == {"said": "old"}
        status = await settled(again)
        assert pins(status) == pinned
        assert status.steps[1].newer_revision == 2

        assert again.flow("stop").ok() == f"{flow.name}: STOPPED, nothing waits\n"
        again.start()
        answer = await answered(again)
        assert (answer.json(), answer.headers["headrace-deployment"]) == ({"said": "new"}, "2")
        assert pins(again.status()) != pinned


def has_ended(pid: int) -> bool:
    return not is_running(pid)


async def answered(flow: SmallFlow) -> HttpAnswer:
    """The first answer with 200."""
    found: list[HttpAnswer] = []

    async def ok() -> bool:
        try:
            answer = await flow.post()
        except (OSError, EOFError):
            return False
        found.append(answer)
        return answer.status == 200

    await eventually(ok, within_s=30, every_s=0.1)
    return found[-1]


async def settled(flow: SmallFlow) -> flow_pb2.FlowStatus:
    """The status once the flow runs and it is known that there is a newer revision."""
    await eventually(lambda: flow.status().steps[1].newer_revision, within_s=20, every_s=0.2)
    status = flow.status()
    assert status.state == flow_pb2.FLOW_STATE_RUNNING
    return status


def pins(status: flow_pb2.FlowStatus) -> dict[str, str]:
    return {step.step: step.pin.digest for step in status.steps}
