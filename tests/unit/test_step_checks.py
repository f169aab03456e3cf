"""A step's config against its component's schema: whatever the schema is, the answer is a list of problems."""

from __future__ import annotations

import json
from typing import Any

import pytest

from headrace.api.component.v1 import component_pb2
from headrace.api.registry.v1 import registry_pb2
from headrace.model.flow_spec import ErrorStep, FlowSpec, HistorySpec, StepSpec
from headrace.wire.step_checks import flow_problems, problems_of


def problems(schema: Any, config: dict[str, Any]) -> list[str]:
    function = registry_pb2.Function(
        name="act", kind=component_pb2.FUNCTION_KIND_ACTION, config_schema_json=json.dumps(schema)
    )
    step = StepSpec("price", "price", config=config)
    return [problem.message for problem in problems_of(1, step, function, False)]


def test_a_config_that_fits_and_one_that_does_not() -> None:
    schema = {"type": "object", "properties": {"rate": {"type": "number"}}, "additionalProperties": False}
    assert problems(schema, {"rate": 2}) == []
    found = problems(schema, {"rate": "two", "x": 1})
    assert len(found) == 2
    assert any("steps[1].config.rate" in problem for problem in found)


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"$ref": "#"}, "refers to itself for ever"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"$ref": "http://127.0.0.1:1/schema.json"}, "leads nowhere"),
        ({"$ref": "file:///etc/hostname"}, "leads nowhere"),
        ({"properties": {"a": {"pattern": "("}}}, "pattern"),
    ],
)
def test_a_schema_that_cannot_be_used_is_named_and_nothing_is_fetched(schema: Any, said: str) -> None:
    (found,) = problems(schema, {"a": "1"})
    assert "the config schema of 'price' cannot be used" in found
    assert said in found


def test_a_recursive_schema_that_ends_is_fine() -> None:
    tree = {"type": "object", "additionalProperties": {"$ref": "#"}}
    deep: dict[str, Any] = {}
    for _ in range(24):
        deep = {"a": deep}
    assert problems(tree, deep) == []


def test_a_listener_has_neither_an_error_step_nor_a_history() -> None:
    listener = registry_pb2.Function(name="listen", kind=component_pb2.FUNCTION_KIND_LISTENER)
    action = registry_pb2.Function(name="act", kind=component_pb2.FUNCTION_KIND_ACTION)
    step = StepSpec("poll", "poll", to=("act",), error_step=ErrorStep("act"))
    assert [problem.reason for problem in problems_of(0, step, listener, True)] == ["ERROR_STEP_OF_LISTENER"]
    spec = FlowSpec("realtime", (step,), history=HistorySpec())
    assert [problem.reason for problem in flow_problems(spec, [listener, action])] == ["HISTORY_OF_LISTENER"]
    assert flow_problems(spec, [action]) == []
