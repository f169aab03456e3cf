"""The mesh's own trigger: a webhook or timer without component, which runs no process and stores nothing.

What starts its flow (a request, a tick, an injected message) goes straight to the step that it names in `to`: the
flow's *entry*. With a component the entry is the trigger itself. So the entry has everything that a trigger with a
process has: what is parked comes to it first, its key decides the slot, and a switch of the ingress is about it.

It makes nothing of a message, so it has one receiver and an edge without condition or mapping; whatever needs code or
a queue of its own needs a component.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from headrace.model.flow_spec import FlowSpec, StepSpec

# What the mesh does by itself, without a process.
OWN_FIELDS = frozenset({"name", "component", "to", "every_s", "cron", "time_zone", "catch_up"})
_FILE_NAMES = {"timeout_s": "timeout", "idle_timeout_s": "idle_timeout"}


def stock_component(step: StepSpec) -> str:
    """Which component does the same with a process."""
    return "timer" if step.every_s or step.cron else "webhook"


def mesh_trigger_problems(spec: FlowSpec, step: StepSpec) -> Iterator[tuple[str, str]]:
    """Field below the step, and why a trigger without component cannot be so; nothing for one that can."""
    needs = f", for which it needs one (the stock component {stock_component(step)} does)"
    if not step.to:
        yield "to", f"step {step.name!r} has no component, so it must name the step that gets its messages"
        return
    if len(step.to) > 1:
        yield "to", f"step {step.name!r} has no component, but sends to {len(step.to)} steps{needs}"
    for receiver in step.edges:
        where = f"to[{step.to.index(receiver)}]" if receiver in step.to else "to"
        yield where, f"step {step.name!r} has no component, but a condition or a mapping{needs}"
    if spec.passthrough:
        yield "component", f"step {step.name!r} has no component, but passthrough carries what it emits{needs}"
    bare = StepSpec(step.name)
    for field in msgspec.structs.fields(StepSpec):
        if field.name in OWN_FIELDS or field.name == "edges":
            continue
        if getattr(step, field.name) != getattr(bare, field.name):
            name = _FILE_NAMES.get(field.name, field.name)
            yield name, needs_process(step)


def needs_process(step: StepSpec) -> str:
    """Why a setting of a step without component is refused."""
    return f"has a meaning only with a component, and step {step.name!r} has none"


def entry_of(spec: FlowSpec, trigger: str) -> StepSpec:
    """The step that stimuli go to, of a flow that was checked and has this trigger."""
    steps = {step.name: step for step in spec.steps}
    step = steps[trigger]
    return step if step.has_process else steps[step.to[0]]
