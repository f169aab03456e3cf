"""What agents and sidecars report, in the planner's words."""

from __future__ import annotations

from collections.abc import Mapping

from headrace.api.agent.v1 import agent_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from services.orchestrator.domain.flow_metrics import InstanceFigures
from services.orchestrator.domain.snapshot import InstanceView, Progress, StatusView, StuckView

_STATES = sidecar_pb2.StepState
_PROGRESS = {
    sidecar_pb2.PROGRESS_WARM: Progress.WARM,
    sidecar_pb2.PROGRESS_ACTIVE: Progress.ACTIVE,
    sidecar_pb2.PROGRESS_DRAINING: Progress.DRAINING,
    sidecar_pb2.PROGRESS_DRAINED: Progress.DRAINED,
}


def progress_of(status: sidecar_pb2.InstanceStatus) -> Progress:
    """The sidecar's state and progress as one word of the planner's."""
    if status.state == _STATES.STEP_STATE_FAILED:
        return Progress.FAILED
    if status.progress in _PROGRESS:
        return _PROGRESS[status.progress]
    if status.state == _STATES.STEP_STATE_SLEEPING:
        return Progress.SLEEPING
    if status.state == _STATES.STEP_STATE_UNSPECIFIED:
        return Progress.NONE
    return Progress.STARTING


def instance_view(instance: agent_pb2.Instance) -> InstanceView:
    return InstanceView(
        name=instance.spec.name,
        deployment=instance.spec.deployment,
        step=instance.spec.step,
        replica=instance.spec.replica,
        up=instance.state == agent_pb2.INSTANCE_STATE_UP,
        stopping=instance.state == agent_pb2.INSTANCE_STATE_STOPPING,
        generation=instance.generation,
        starts=instance.starts,
        last_exit=instance.last_exit,
    )


def status_view(status: sidecar_pb2.InstanceStatus) -> StatusView:
    return StatusView(
        progress=progress_of(status),
        generation=status.generation,
        in_flight=status.in_flight,
        cause=status.cause,
        cause_reason=status.cause_reason,
        log_lines=tuple(status.last_log_lines),
        gave_way=status.gave_way,
        stuck=status.stuck,
        stuck_message=_stuck(status) if status.stuck else None,
        resumed=status.resumed,
        may_sleep=status.idle,
        concluded=status.concluded,
        slots=frozenset((lease.slot, lease.generation) for lease in status.slots),
    )


def _stuck(status: sidecar_pb2.InstanceStatus) -> StuckView:
    message = status.stuck_message
    return StuckView(message.message_id, message.execution_id, message.code, message.error)


def instance_figures(
    instances: Mapping[str, agent_pb2.Instance], reports: Mapping[str, sidecar_pb2.InstanceStatus]
) -> InstanceFigures:
    """Over instances of one flow, by step. One that is being started again after it ended by itself is FAILED."""
    states: dict[tuple[str, str], int] = {}
    in_flight: dict[str, int] = {}
    start_s: dict[tuple[str, str], float] = {}
    for name, instance in instances.items():
        step, report = instance.spec.step, reports.get(name)
        if instance.state == agent_pb2.INSTANCE_STATE_BACKING_OFF:
            state = "FAILED"
        elif report is None or instance.state != agent_pb2.INSTANCE_STATE_UP:
            state = "STARTING"
        else:
            state = _STATES.Name(report.state).removeprefix("STEP_STATE_")
            in_flight[step] = in_flight.get(step, 0) + report.in_flight
            for stage, ms in report.stage_ms.items():
                start_s[step, stage] = max(start_s.get((step, stage), 0.0), ms / 1000)
        states[step, state] = states.get((step, state), 0) + 1
    return InstanceFigures(states, in_flight, start_s)
