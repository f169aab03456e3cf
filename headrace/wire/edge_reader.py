"""Where messages of a step go, as a flow file says it: `to` with its expressions, and `on_error`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headrace.model.expressions import syntax_problem
from headrace.model.flow_spec import ON_ERROR, EdgeSpec, ErrorStep
from headrace.model.suggestion import did_you_mean
from headrace.wire.field_reader import FieldReader

EDGE_KEYS = ("step", "condition", "mapping")
ERROR_KEYS = ("step", "dead_letter")


class EdgeReader(FieldReader):
    """Part of the reader of flow files."""

    def receivers(
        self, field: str, value: Any, steps: Mapping[str, Any]
    ) -> tuple[tuple[str, ...], dict[str, EdgeSpec]]:
        """Names of the receivers, and what the edges say that say something."""
        if not isinstance(value, list):
            self.fail(field, value, "is not a list of steps", "Write `to: [price]`")
        names: list[str] = []
        edges: dict[str, EdgeSpec] = {}
        for index, item in enumerate(value):
            path = f"{field}[{index}]"
            receiver = self.mapping(path, item, EDGE_KEYS).get("step") if isinstance(item, dict) else item
            if not isinstance(receiver, str) or receiver not in steps:
                hint = did_you_mean(str(receiver), steps) or f"Steps: {', '.join(map(str, steps))}"
                self.fail(path, receiver, "is not a step", hint, "UNKNOWN_RECEIVER")
            if receiver in names:
                self.fail(path, receiver, "stands twice", "Name each receiver once", "DUPLICATE_EDGE")
            names.append(receiver)
            if isinstance(item, dict):
                edge = EdgeSpec(*(self._expression(f"{path}.{key}", key, item) for key in EDGE_KEYS[1:]))
                edges.update({receiver: edge} if edge != EdgeSpec() else {})
        return tuple(names), edges

    def _expression(self, field: str, key: str, edge: Mapping[str, Any]) -> str:
        source = edge.get(key, "")
        if isinstance(source, bool):
            source = "true" if source else "false"  # YAML took the word for itself
        if key not in edge:
            return ""
        text = self.text(field, source)
        problem = syntax_problem(text)
        if problem:
            self.refuse(field, problem, "See https://docs.jsonata.org; the expression reads body, headers, steps",
                        "BAD_EXPRESSION")  # fmt: skip
        return text

    def on_error(self, field: str, step: Mapping[str, Any], steps: Mapping[str, Any]) -> tuple[str, ErrorStep | None]:
        """A word (empty: as the flow says), or the step that handles what fails."""
        given = step.get("on_error", "")
        if isinstance(given, dict):
            return "", self.error_step(field, given, steps)
        value = self.text(field, given)
        if "on_error" in step and value not in ON_ERROR:
            next_step = "Leave it out for dead-letter, or name a step: `on_error: {step: complain}`"
            self.fail(field, value, f"is not one of {', '.join(ON_ERROR)}", next_step)
        return value, None

    def error_step(self, field: str, value: Any, steps: Mapping[str, Any]) -> ErrorStep:
        if not isinstance(value, dict):
            self.fail(field, value, "does not name a step", "Write `on_error: {step: complain}`")
        given = self.mapping(field, value, ERROR_KEYS)
        handler = given.get("step")
        if not isinstance(handler, str) or handler not in steps:
            hint = did_you_mean(str(handler), steps) or f"Steps: {', '.join(map(str, steps))}"
            self.fail(f"{field}.step", handler, "is not a step", hint, "UNKNOWN_RECEIVER")
        return ErrorStep(handler, self.switch("dead_letter", given, field))

    def switch(self, key: str, mapping: Mapping[str, Any], field: str = "") -> bool:
        value = mapping.get(key, False)
        if not isinstance(value, bool):
            self.fail(f"{field}.{key}" if field else key, value, "is not true or false")
        return value
