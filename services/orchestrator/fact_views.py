"""What sidecars answer, in the words of the diagnosis."""

from __future__ import annotations

import time

from headrace.api.agent.v1 import agent_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from services.orchestrator.domain.facts import CallFacts, EdgeFacts, InstanceFacts, StackFacts

_S = sidecar_pb2
DONE = ("processed", "dead_lettered", "rejected", "handed_over")


def done_of(answer: sidecar_pb2.ExamineResponse) -> int:
    """Messages that an instance has finished so far."""
    return sum(answer.status.counters.get(name, 0) for name in DONE)


def instance_facts(
    name: str,
    instance: agent_pb2.Instance | None,
    before: sidecar_pb2.ExamineResponse | None,
    answer: sidecar_pb2.ExamineResponse | None,
    asked_at: float,
) -> InstanceFacts:
    """`before` and `answer` are of the two looks; `asked_at` is when (Unix seconds) the second was answered."""
    if instance is None:
        return InstanceFacts(name, known=False, up=False, answers=False)
    up = instance.state == agent_pb2.INSTANCE_STATE_UP
    answer = answer or before
    if answer is None:
        return InstanceFacts(
            name, up=up, answers=False, pid=instance.pid, starts=instance.starts, last_exit=instance.last_exit
        )
    status = answer.status
    error = answer.last_error if answer.HasField("last_error") else None
    return InstanceFacts(
        name,
        up=up,
        pid=instance.pid,
        starts=instance.starts,
        last_exit=instance.last_exit,
        state=_S.StepState.Name(status.state).removeprefix("STEP_STATE_"),
        stage=_S.Progress.Name(status.progress).removeprefix("PROGRESS_"),
        stage_s=max(0.0, answer.now.ToNanoseconds() - status.change_time.ToNanoseconds()) / 1e9,
        cause=status.cause,
        cause_reason=status.cause_reason,
        component_pid=status.component_pid,
        component_starts=status.component_starts,
        component_process=answer.component_process,
        held=dict(answer.held),
        running=tuple(map(_call, answer.running)),
        retrying=tuple(map(_call, answer.retrying)),
        suspects=tuple(map(_call, answer.suspects)),
        edges=tuple(
            EdgeFacts(edge.receiver, edge.waiting, edge.why, edge.blocked_for.ToNanoseconds() / 1e9)
            for edge in answer.edges
        ),
        broker_connected=answer.broker_connected,
        broker_ms=_broker_ms(before, answer),
        paced=answer.paced,
        given_up=answer.given_up,
        prefetch=answer.prefetch or 64,
        since_input_s=_since(answer, "last_input_time"),
        error_code=error.code if error else "",
        error_text=error.message if error else "",
        error_s=(answer.now.ToNanoseconds() - error.time.ToNanoseconds()) / 1e9 if error else None,
        stacks=tuple(StackFacts(item.call, item.name, tuple(item.frames)) for item in answer.stacks.stacks),
        stacks_how=answer.stacks.how,
        stacks_problem=answer.stacks.problem,
        clock_ahead_s=_ahead(answer, asked_at),
        done=max(0, done_of(answer) - done_of(before)) if before is not None else 0,
    )


def _broker_ms(*looks: sidecar_pb2.ExamineResponse | None) -> float | None:
    """The better one: a busy machine makes single ones late."""
    return min((look.broker_ms for look in looks if look is not None and look.HasField("broker_ms")), default=None)


def _since(answer: sidecar_pb2.ExamineResponse, field: str) -> float | None:
    if not answer.HasField(field):  # type: ignore[arg-type]
        return None
    return float(max(0, answer.now.ToNanoseconds() - getattr(answer, field).ToNanoseconds()) / 1e9)


def _ahead(answer: sidecar_pb2.ExamineResponse, asked_at: float) -> float:
    return float(answer.now.ToNanoseconds() / 1e9 - (asked_at or time.time()))


def _call(message: sidecar_pb2.HeldMessage) -> CallFacts:
    return CallFacts(
        message.message_id,
        message.execution_id,
        attempt=message.attempt,
        runs_s=message.runs_for.ToNanoseconds() / 1e9,
        due_s=message.due_in.ToNanoseconds() / 1e9,
        rebound=message.rebound,
        code=message.error.code,
        error=message.error.message,
        crashes=message.crashes,
        call=message.call,
    )
