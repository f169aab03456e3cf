"""A status fits into an answer, however much its components have written."""

from __future__ import annotations

from headrace.api.flow.v1 import flow_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.call_bounds import MAX_ANSWER_BYTES
from services.orchestrator.mesh_view import shortened


def status(instances: int, line: int) -> flow_pb2.FlowStatus:
    reports = [sidecar_pb2.InstanceStatus(instance=f"i{n}", last_log_lines=["x" * line] * 20) for n in range(instances)]
    return flow_pb2.FlowStatus(flow="flows/orders", steps=[flow_pb2.StepStatus(step="price", instances=reports)])


def test_a_usual_status_stays_as_it_is() -> None:
    assert shortened(status(3, 100)) == status(3, 100)


def test_a_very_long_one_loses_its_log_lines_only() -> None:
    short = shortened(status(64, 8_000))
    assert short.ByteSize() < MAX_ANSWER_BYTES
    assert [report.instance for report in short.steps[0].instances] == [f"i{n}" for n in range(64)]
