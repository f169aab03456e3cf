"""What a flow's timer has done and does next, as a message of `headrace.api.flow.v1`."""

from __future__ import annotations

from headrace.api.flow.v1 import flow_pb2
from headrace.model.deployment import MeshTrigger, StepPlan
from headrace.wire.flow import duration_from_seconds
from services.orchestrator.domain.tick_plan import TickCursor, TimerSpec, next_tick


def timer_message(
    spec: TimerSpec | None, timer: StepPlan | MeshTrigger, cursor: TickCursor | None, now_ns: int
) -> flow_pb2.TimerStatus:
    """`spec` None: the flow does not run, so no instant comes next."""
    message = flow_pb2.TimerStatus(step=timer.name, cron=timer.cron, time_zone=timer.time_zone if timer.cron else "")
    if timer.every_s:
        message.every.CopyFrom(duration_from_seconds(timer.every_s))
    if cursor is not None:
        message.ticks, message.skipped, message.edge_full = cursor.ticks, cursor.skipped, cursor.edge_full
        message.last_instant.FromNanoseconds(cursor.settled_ns)
    if spec is not None:
        settled = cursor.settled_ns if cursor is not None else 0
        message.next_instant.FromNanoseconds(next_tick(spec, settled, now_ns))
    return message
