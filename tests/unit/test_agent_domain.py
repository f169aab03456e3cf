"""Rules of the agent: specs, room, and the fence against calls that come too late."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import AlreadyExists, Exhausted, InvalidInput, WrongState
from services.agent.domain.instances import (
    GenerationFence,
    InstanceSpec,
    check_room,
    check_same_spec,
    check_spec,
)

SPEC = InstanceSpec("default.orders.d1.price.0", "default", "orders", 1, "price", 0, "sha256:ab")


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 20)), max_size=60))
def test_a_call_counts_exactly_when_its_generation_is_not_below_any_seen(calls: list[tuple[str, int]]) -> None:
    fence = GenerationFence()
    highest: dict[str, int] = {}
    for name, generation in calls:
        if generation < highest.get(name, 0):
            with pytest.raises(WrongState) as refused:
                fence.pass_through(name, generation)
            assert refused.value.reason == "STALE_GENERATION"
            assert refused.value.metadata == {"generation": str(highest[name])}
        else:
            fence.pass_through(name, generation)
            highest[name] = generation


def test_the_fence_forgets_the_oldest_names_only() -> None:
    fence = GenerationFence(remembered=2)
    for name in ("a", "b", "a", "c"):
        fence.pass_through(name, 5)
    fence.pass_through("b", 1)  # forgotten
    with pytest.raises(WrongState):
        fence.pass_through("c", 4)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"workspace": "../x"}, "spec.workspace"),
        ({"flow": "Orders"}, "spec.flow"),
        ({"step": ""}, "spec.step"),
        ({"deployment": 0}, "spec.deployment"),
        ({"plan_digest": ""}, "spec.plan_digest"),
        ({"replica": 1}, "spec.name"),
        ({"name": "../../etc/passwd"}, "spec.name"),
    ],
)
def test_a_wrong_spec_names_its_field(change: dict[str, object], field: str) -> None:
    assert check_spec(SPEC) == SPEC
    with pytest.raises(InvalidInput) as refused:
        check_spec(replace(SPEC, **change))  # type: ignore[arg-type]
    assert refused.value.violations[0].field == field


def test_an_instance_never_changes_what_it_runs() -> None:
    check_same_spec(SPEC, replace(SPEC))
    with pytest.raises(AlreadyExists, match="Stop it first"):
        check_same_spec(SPEC, replace(SPEC, plan_digest="sha256:cd"))


def test_the_number_of_instances_is_bounded() -> None:
    check_room(9, 10)
    with pytest.raises(Exhausted):
        check_room(10, 10)
