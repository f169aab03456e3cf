"""One flow as metrics: from the newest look at it, what its instances report, and what its streams hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.model.metric_readings import Readings
from services.orchestrator.domain.dead_letters import pushed_out
from services.orchestrator.domain.flow_health import Health
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.sleeping import sleepers
from services.orchestrator.domain.snapshot import Snapshot

INSTANCE_STATES = ("SLEEPING", "STARTING", "RUNNING", "SHUTTING_DOWN", "FAILED")


@dataclass(frozen=True, slots=True)
class StepBacklog:
    """Messages stored for a step, those in work too, and when the oldest was stored (Unix seconds; 0: none)."""

    stored: int = 0
    oldest_at: float = 0.0


@dataclass(frozen=True, slots=True)
class FlowBacklog:
    """One flow's stream, and that of its dead letters. `steps` is None where it could not be read in time."""

    messages: int = 0
    size: int = 0
    letters_kept: int = 0
    letters_stored: int = 0
    steps: Mapping[str, StepBacklog] | None = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InstanceFigures:
    """Over the instances of a flow: how many by step and state, messages that they hold by step, and seconds by step
    and stage of the slowest of their newest starts."""

    states: Mapping[tuple[str, str], int]
    in_flight: Mapping[str, int]
    start_s: Mapping[tuple[str, str], float]


def put_flow(readings: Readings, snapshot: Snapshot, health: Health | None, figures: InstanceFigures) -> None:
    """What follows from documents and reports."""
    document = snapshot.flow
    flow = document.flow
    for state in FlowState:
        readings.put("flow_state", document.state == state, flow, state.value)
    readings.put("flow_serving", health == Health.SERVING, flow)
    readings.put("flow_dropped_messages_total", document.dropped, flow)
    readings.put("flow_ingress_repairs_total", document.ingress_repairs, flow)
    readings.put("flow_strays_total", document.strays_moved, flow)
    readings.put("flow_stuck_redelivered_total", document.stuck_redelivered, flow)
    if snapshot.letters is not None:
        readings.put("flow_dead_letters_pushed_out", pushed_out(snapshot.letters, document.letters), flow)
    view = snapshot.deployments.get(document.active)
    if view is not None and view.state is not None:
        for stage, ms in view.state.start_ms.items():
            readings.put("flow_deployment_start_seconds", ms / 1000, flow, stage)
    states = dict(figures.states)
    if view is not None and view.state is not None:
        states |= {(step, "SLEEPING"): view.state.replicas.get(step, 1) for step in sleepers(snapshot)}
    for step in {step for step, _ in states}:
        for name in INSTANCE_STATES:
            readings.put("step_instances", states.get((step, name), 0), flow, step, name)
        readings.put("step_in_flight_messages", figures.in_flight.get(step, 0), flow, step)
    for (step, stage), seconds in figures.start_s.items():
        readings.put("step_start_seconds", seconds, flow, step, stage)


def put_backlog(
    readings: Readings, snapshot: Snapshot, backlog: FlowBacklog, in_flight: Mapping[str, int], now: float
) -> None:
    """What is stored for the flow and its steps; `now` in Unix seconds."""
    flow = snapshot.flow.flow
    readings.put("flow_stored_messages", backlog.messages, flow)
    readings.put("flow_stored_bytes", backlog.size, flow)
    readings.put("flow_dead_letters_kept", backlog.letters_kept, flow)
    readings.put("flow_dead_letters_total", backlog.letters_stored, flow)
    if backlog.steps is None:
        return
    for step in {*steps_of(snapshot), *backlog.steps}:
        stored = backlog.steps.get(step, StepBacklog())
        age_s = max(0.0, now - stored.oldest_at) if stored.oldest_at else 0.0
        readings.put("step_waiting_messages", max(0, stored.stored - in_flight.get(step, 0)), flow, step)
        readings.put("step_oldest_message_age_seconds", age_s, flow, step)


def steps_of(snapshot: Snapshot) -> list[str]:
    """Of the deployment that runs, or is being made ready."""
    view = snapshot.deployments.get(snapshot.flow.active or snapshot.flow.target)
    return [step.name for step in view.plan.steps] if view is not None and view.plan is not None else []
