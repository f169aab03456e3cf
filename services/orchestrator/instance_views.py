"""What agents and sidecars report, in the planner's words."""

from __future__ import annotations

from headrace.api.agent.v1 import agent_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
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
        slots=frozenset((lease.slot, lease.generation) for lease in status.slots),
    )


def _stuck(status: sidecar_pb2.InstanceStatus) -> StuckView:
    message = status.stuck_message
    return StuckView(message.message_id, message.execution_id, message.code, message.error)
