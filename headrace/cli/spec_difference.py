"""What differs between two flow specs, in the words of a flow file. Pure."""

from __future__ import annotations

from typing import Any

import msgspec

from headrace.model.deployment_difference import FieldDifference, compare_trees
from headrace.model.durations import format_duration
from headrace.model.flow_spec import FlowSpec, StepSpec


def compare_specs(old: FlowSpec, new: FlowSpec) -> list[FieldDifference]:
    """One entry per value that differs; a step that is added or removed is one entry."""
    return list(compare_trees("", as_written(old), as_written(new)))


def as_written(spec: FlowSpec) -> dict[str, Any]:
    """A spec by the names of a flow file, defaults filled in, steps by name."""
    facts = _written(spec)
    facts["steps"] = {step.name: _step(step) for step in spec.steps}
    return facts


def _step(step: StepSpec) -> dict[str, Any]:
    facts = _written(step)
    del facts["name"]
    facts["retry"] = _written(step.retry)
    return facts


def _written(part: msgspec.Struct) -> dict[str, Any]:
    """Durations lose their `_s` and become text."""
    facts: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(part).items():
        if name.endswith("_s"):
            facts[name.removesuffix("_s")] = format_duration(value) if value else ""
        else:
            facts[name] = value
    return facts


def difference_text(item: FieldDifference) -> str:
    """`~ steps.price.timeout: "60s" -> "30s"`, `+ steps.check: {...}`, `- steps.check`."""
    if not item.old_json:
        return f"+ {item.field}: {item.new_json}"
    if not item.new_json:
        return f"- {item.field}"
    return f"~ {item.field}: {item.old_json} -> {item.new_json}"
