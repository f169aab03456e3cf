"""Which step gets what another one fails for good: said by the step, or by the flow for all that say nothing.

What the flow says does not count for error steps, nor for what its own one leads to: their failures are dead letters.
"""

from __future__ import annotations

from headrace.model.flow_spec import ErrorStep, FlowSpec


def error_steps(spec: FlowSpec) -> dict[str, ErrorStep]:
    """By the name of the step that fails; steps without one are not in it."""
    found = {step.name: step.error_step for step in spec.steps if step.error_step is not None}
    if spec.error_step is None:
        return found
    exempt = _reach(spec, found, spec.error_step.step) | {handler.step for handler in found.values()}
    silent = (step.name for step in spec.steps if step.has_process and not step.on_error and step.name not in found)
    return found | {name: spec.error_step for name in silent if name not in exempt}


def successors(spec: FlowSpec) -> dict[str, tuple[str, ...]]:
    """Whoever can get a message from a step, by its name: its receivers, and its error step as the last."""
    handlers = error_steps(spec)
    return {
        step.name: (*step.to, handlers[step.name].step) if step.name in handlers else step.to for step in spec.steps
    }


def _reach(spec: FlowSpec, handlers: dict[str, ErrorStep], start: str) -> set[str]:
    """The step, and all that its messages can come to."""
    receivers = {step.name: step.to for step in spec.steps}
    reached, pending = {start}, [start]
    while pending:
        name = pending.pop()
        following = {*receivers.get(name, ()), *([handlers[name].step] if name in handlers else [])}
        pending += following - reached
        reached |= following
    return reached
