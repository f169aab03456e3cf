"""What differs between two deployments, and that nothing does between a plan and itself."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.flow_tables import difference_lines
from headrace.model.deployment import DeploymentPlan, PinPlan, StepPlan
from headrace.model.deployment_difference import compare
from headrace.model.flow_spec import RetryPolicy
from services.orchestrator.operation_view import difference_message


def step(name: str, *, revision: int = 1, config: dict[str, Any] | None = None, to: tuple[str, ...] = ()) -> StepPlan:
    pin = PinPlan(name, revision, f"sha256:{revision:064x}", "cpython-3.11", "1", "1")
    return StepPlan(name, "action", "work", pin, config or {}, to, 64, 60.0, RetryPolicy())


def plan(*steps: StepPlan, number: int = 1, **changes: Any) -> DeploymentPlan:
    base = DeploymentPlan("default", "orders", "realtime", number, number, steps[0].name, steps, 1000, 0.0, 0)
    return msgspec.structs.replace(base, **changes)


REPLICAS = {"order": 1, "price": 1}
OLD = plan(step("order", to=("price",)), step("price", config={"limit": 1, "deep": {"a": [1]}}))


def test_a_plan_differs_from_itself_in_nothing_whatever_its_numbers() -> None:
    same = msgspec.structs.replace(OLD, deployment=7, version=9, parking_epoch=3)
    assert not compare(OLD, REPLICAS, same, REPLICAS)


def test_every_difference_is_named_where_it_is() -> None:
    new = plan(
        step("order", revision=2, to=("price", "check")),
        step("price", config={"limit": 1.0, "deep": {"a": [2]}, "new": None}),
        step("check"),
        number=2,
        reply_timeout_s=5.0,
    )
    difference = compare(OLD, REPLICAS, new, {**REPLICAS, "price": 3, "check": 1})
    assert difference_lines(difference_message(difference)) == [
        'reply_timeout: "0s" -> "5s"',
        "~ order: order@1 -> order@2 (000000000000 -> 000000000000)",
        '~ order: to ["price"] -> ["check","price"]',
        "~ price: config.deep.a [1] -> [2]",
        "~ price: config.limit 1 -> 1.0",
        "~ price: config.new (none) -> null",
        "~ price: replicas 1 -> 3",
        "+ check: check@1 (000000000000)",
    ]
    back = compare(new, {}, OLD, {})
    assert difference_lines(difference_message(back))[-1] == "- check: check@1"
    assert difference_lines(flow_pb2.FlowDifference(against=4)) == ["the same as deployment 4"]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
CONFIGS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)


@given(CONFIGS, CONFIGS)
def test_configs_differ_exactly_when_their_json_does(left: dict[str, Any], right: dict[str, Any]) -> None:
    old, new = plan(step("order", config=left)), plan(step("order", config=right))
    encoded = [msgspec.json.encode(config, order="deterministic") for config in (left, right)]
    assert bool(compare(old, {}, new, {})) == (encoded[0] != encoded[1])
    forth, back = compare(old, {}, new, {}), compare(new, {}, old, {})
    swapped = [(item.field, item.new_json, item.old_json) for part in forth.steps for item in part.fields]
    assert swapped == [(item.field, item.old_json, item.new_json) for part in back.steps for item in part.fields]
