"""The transition table of a flow's state: every change of state goes through `next_state`."""

from __future__ import annotations

from enum import StrEnum

from headrace.model.errors import WrongState


class FlowState(StrEnum):
    STOPPED = "STOPPED"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SLEEPING = "SLEEPING"
    SUSPENDING = "SUSPENDING"
    SUSPENDED = "SUSPENDED"
    STOPPING = "STOPPING"


class FlowEvent(StrEnum):
    """What moves a flow. The first four are a person's, the others the planner's."""

    START = "start"
    STOP = "stop"
    SUSPEND = "suspend"
    RESUME = "resume"
    # A running flow's ingress is parked: its old deployment drains, then the new one starts.
    PARKED = "parked"
    STARTED = "started"
    START_FAILED = "start failed"
    STOPPED = "stopped"
    SUSPENDED = "suspended"
    # Every step of an ordinary flow sleeps; one of them does no longer.
    FELL_ASLEEP = "fell asleep"
    WOKE = "woke"


# A deployment handles what comes, awake or woken for it.
RUNS = frozenset({FlowState.RUNNING, FlowState.SLEEPING})
SUSPENDED_STATES = frozenset({FlowState.SUSPENDING, FlowState.SUSPENDED})

TRANSITIONS: dict[tuple[FlowState, FlowEvent], FlowState] = {
    (FlowState.STOPPED, FlowEvent.START): FlowState.STARTING,
    (FlowState.STOPPED, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.STARTING, FlowEvent.STARTED): FlowState.RUNNING,
    (FlowState.STARTING, FlowEvent.START_FAILED): FlowState.STOPPED,
    (FlowState.STARTING, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.RUNNING, FlowEvent.PARKED): FlowState.STARTING,
    (FlowState.RUNNING, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.RUNNING, FlowEvent.SUSPEND): FlowState.SUSPENDING,
    (FlowState.RUNNING, FlowEvent.FELL_ASLEEP): FlowState.SLEEPING,
    (FlowState.SLEEPING, FlowEvent.WOKE): FlowState.RUNNING,
    (FlowState.SLEEPING, FlowEvent.PARKED): FlowState.STARTING,
    (FlowState.SLEEPING, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.SLEEPING, FlowEvent.SUSPEND): FlowState.SUSPENDING,
    (FlowState.SUSPENDING, FlowEvent.SUSPENDED): FlowState.SUSPENDED,
    (FlowState.SUSPENDING, FlowEvent.RESUME): FlowState.RUNNING,
    (FlowState.SUSPENDED, FlowEvent.RESUME): FlowState.RUNNING,
    (FlowState.SUSPENDING, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.SUSPENDED, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.STOPPING, FlowEvent.STOP): FlowState.STOPPING,
    (FlowState.STOPPING, FlowEvent.STOPPED): FlowState.STOPPED,
}

_NEXT_STEPS = {
    FlowState.STOPPED: "Start it: headrace flow start {flow}",
    FlowState.STARTING: "Wait until it runs, or stop it: headrace flow stop {flow}",
    FlowState.SLEEPING: "Stop it first: headrace flow stop {flow}",
    FlowState.RUNNING: "Stop it first: headrace flow stop {flow}",
    FlowState.SUSPENDING: "Wait until it is suspended, or go on: headrace flow resume {flow}",
    FlowState.SUSPENDED: "Go on: headrace flow resume {flow}; or stop it: headrace flow stop {flow}",
    FlowState.STOPPING: "Wait until it is stopped, or drop what waits: headrace flow stop {flow} --drop --yes",
}


def next_state(flow: str, state: FlowState, event: FlowEvent) -> FlowState:
    """The state after the event; WrongState naming the state and what can be done in it."""
    following = TRANSITIONS.get((state, event))
    if following is None:
        raise wrong_state(flow, state, str(event))
    return following


def wrong_state(flow: str, state: FlowState, verb: str) -> WrongState:
    """The error for a verb that does not fit the state."""
    return WrongState(
        f"flow {flow!r} is {state}: cannot {verb}",
        next_step=_NEXT_STEPS.get(state, "See headrace flow status {flow}").format(flow=flow),
        metadata={"flow": flow, "state": str(state)},
    )
