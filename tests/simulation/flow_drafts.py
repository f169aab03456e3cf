"""The flow that a simulated mesh runs, as a person writes it: keyed or not, its trigger with a process or without."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from headrace.model import subjects
from headrace.model.flow_spec import FlowSpec, StepSpec

WORKSPACE = "default"
FLOW = "orders"
STREAM = subjects.flow_stream(WORKSPACE, FLOW)
TRIGGER = "order"


class Trigger(StrEnum):
    """What runs the trigger of a run's flows: a process always, never, or as each draft says."""

    PROCESS = "process"
    OWN = "own"
    CHANGING = "changing"


def spec(replicas: int, keyed: int, *, own_trigger: bool = False, idle_timeout_s: float | None = None) -> FlowSpec:
    """`keyed`: 0 no step, 1 all after the trigger, 2 all. `own_trigger`: the mesh's own, which runs no process.
    `idle_timeout_s`: its steps sleep after so long; None: it is real-time."""
    trigger, others = ("header:key" if keyed > 1 else "", 2 if keyed > 1 else 0), ("header:key" if keyed else "", 3)
    first = StepSpec(TRIGGER, "hook", to=("price",), key=trigger[0], slots=trigger[1])
    steps = (
        StepSpec(TRIGGER, to=("price",)) if own_trigger else first,
        StepSpec("price", "work", to=("check",), replicas=replicas, key=others[0], slots=others[1] if keyed else 0),
        StepSpec("check", "work", key=others[0], slots=others[1] if keyed else 0),
    )
    if idle_timeout_s is None:
        return FlowSpec("realtime", steps, max_waiting=1000)
    naps = tuple(
        msgspec.structs.replace(step, idle_timeout_s=idle_timeout_s) if step.has_process else step for step in steps
    )
    return FlowSpec("ordinary", naps, max_waiting=1000)
