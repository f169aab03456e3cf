"""What one deployment runs otherwise than another: steps, revisions, config, graph. Plans in, difference out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.rates import rate_text

ADDED = "added"
REMOVED = "removed"
CHANGED = "changed"


@dataclass(frozen=True, slots=True)
class FieldDifference:
    """One value that differs, as JSON text; empty where it is missing on that side."""

    field: str
    old_json: str
    new_json: str


@dataclass(frozen=True, slots=True)
class StepDifference:
    """A step that was `added`, `removed` or `changed`; a pin is None on the side where there is no such step."""

    step: str
    change: str
    old_pin: PinPlan | None
    new_pin: PinPlan | None
    fields: tuple[FieldDifference, ...] = ()


@dataclass(frozen=True, slots=True)
class Difference:
    """Falsy when both run exactly the same."""

    against: int
    steps: tuple[StepDifference, ...]
    fields: tuple[FieldDifference, ...]

    def __bool__(self) -> bool:
        return bool(self.steps or self.fields)


def compare(
    old: DeploymentPlan, old_replicas: Mapping[str, int], new: DeploymentPlan, new_replicas: Mapping[str, int]
) -> Difference:
    """Everything in which `new` differs from `old`; numbers of deployment and version do not count."""
    before = {step.name: step for step in old.steps}
    after = {step.name: step for step in new.steps}
    steps: list[StepDifference] = []
    for name in [*after, *(name for name in before if name not in after)]:
        left, right = before.get(name), after.get(name)
        if left is None:
            steps.append(StepDifference(name, ADDED, None, right.pin if right else None))
        elif right is None:
            steps.append(StepDifference(name, REMOVED, left.pin, None))
        else:
            fields = (*_step_fields(left, right), *_replicas(name, old_replicas, new_replicas))
            if fields or left.pin.digest != right.pin.digest:
                steps.append(StepDifference(name, CHANGED, left.pin, right.pin, fields))
    return Difference(old.deployment, tuple(steps), _flow_fields(old, new))


def _flow_fields(old: DeploymentPlan, new: DeploymentPlan) -> tuple[FieldDifference, ...]:
    return (
        *_field("type", old.flow_type, new.flow_type),
        *_field("trigger", old.trigger, new.trigger),
        *compare_trees("mesh_trigger", _own(old), _own(new)),
        *_field("reply_timeout", f"{old.reply_timeout_s:g}s", f"{new.reply_timeout_s:g}s"),
        *_field("max_waiting", old.max_waiting, new.max_waiting),
        *_field("rate_limit", rate_text(old.rate_limit), rate_text(new.rate_limit)),
        *_field("passthrough", old.passthrough, new.passthrough),
        *compare_trees("history", msgspec.to_builtins(old.history), msgspec.to_builtins(new.history)),
    )


def _own(plan: DeploymentPlan) -> dict[str, Any]:
    """Of a trigger that the mesh runs by itself: where its messages go, and when its ticks come."""
    trigger = plan.mesh_trigger
    if trigger is None:
        return {}
    found: dict[str, Any] = {"to": [plan.entry]}
    if trigger.every_s:
        found["every"] = f"{trigger.every_s:g}s"
    if trigger.cron:
        found |= {"cron": trigger.cron, "time_zone": trigger.time_zone}
    return found | ({"catch_up": trigger.catch_up} if trigger.is_timer else {})


def _step_fields(old: StepPlan, new: StepPlan) -> tuple[FieldDifference, ...]:
    """By the names of a flow file."""
    return (
        *_field("function", old.function, new.function),
        *compare_trees("config", old.config, new.config),
        *_field("to", sorted(old.receivers), sorted(new.receivers)),
        *_field("prefetch", old.prefetch, new.prefetch),
        *_field("timeout", f"{old.timeout_s:g}s", f"{new.timeout_s:g}s"),
        *_field("every", f"{old.every_s:g}s", f"{new.every_s:g}s"),
        *_field("cron", old.cron, new.cron),
        *_field("time_zone", old.time_zone, new.time_zone),
        *_field("catch_up", old.catch_up, new.catch_up),
        *_field("credential", _credential(old), _credential(new)),
        *_field("key", old.key, new.key),
        *_field("slots", old.slots, new.slots),
        *_field("exactly_once", old.exactly_once, new.exactly_once),
        *_field("rate_limit", rate_text(old.rate_limit), rate_text(new.rate_limit)),
        *_field("on_error", _on_error(old), _on_error(new)),
        *_field("idle_timeout", f"{old.idle_timeout_s:g}s", f"{new.idle_timeout_s:g}s"),
        *compare_trees("edges", msgspec.to_builtins(old.edges), msgspec.to_builtins(new.edges)),
        *compare_trees("retry", msgspec.to_builtins(old.retry), msgspec.to_builtins(new.retry)),
        *_field("interpreter", old.pin.interpreter, new.pin.interpreter),
        *_field("sdk", old.pin.sdk_version, new.pin.sdk_version),
        *_field("sidecar", old.pin.sidecar_version, new.pin.sidecar_version),
    )


def _credential(step: StepPlan) -> str:
    return f"{step.credential.name} (version {step.credential.version})" if step.credential else ""


def _on_error(step: StepPlan) -> Any:
    if not step.error_step:
        return step.on_error
    return {"step": step.error_step, "dead_letter": step.error_letter}


def _replicas(step: str, old: Mapping[str, int], new: Mapping[str, int]) -> tuple[FieldDifference, ...]:
    return _field("replicas", old.get(step, 1), new.get(step, 1))


def compare_trees(path: str, old: Any, new: Any) -> tuple[FieldDifference, ...]:
    """Objects are compared key by key, so that one changed value is one line."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return _field(path, old, new)
    found: list[FieldDifference] = []
    below = f"{path}." if path else ""
    for key in sorted({*old, *new}):
        if key not in new:
            found.append(FieldDifference(below + key, _json(old[key]), ""))
        elif key not in old:
            found.append(FieldDifference(below + key, "", _json(new[key])))
        else:
            found += compare_trees(below + key, old[key], new[key])
    return tuple(found)


def _field(path: str, old: Any, new: Any) -> tuple[FieldDifference, ...]:
    # As JSON, so that 1 and true, or 1 and 1.0, are what a component would see.
    left, right = _json(old), _json(new)
    return (FieldDifference(path, left, right),) if left != right else ()


def _json(value: Any) -> str:
    return msgspec.json.encode(value, order="deterministic").decode()
