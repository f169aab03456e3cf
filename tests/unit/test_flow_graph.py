"""Flow validation: every problem with its path; valid graphs in an order that respects the edges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.error_steps import error_steps
from headrace.model.errors import InvalidInput
from headrace.model.flow_graph import check_flow
from headrace.model.flow_spec import SUSPEND_FLOW, ErrorStep, FlowSpec, HistorySpec, RetryPolicy, StepSpec

HANDLER = ErrorStep("h")


def flow(*steps: StepSpec, **fields: object) -> FlowSpec:
    return FlowSpec("realtime", steps, **fields)  # type: ignore[arg-type]


def step(name: str, *to: str, **fields: object) -> StepSpec:
    return StepSpec(name, "work", to=to, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spec", "path", "reason"),
    [
        (flow(), "steps", "NO_TRIGGER"),
        (flow(step("a", "b"), step("b", "c"), step("c", "b")), "steps[1].to[0]", "CYCLE"),
        (flow(step("a", "b"), step("b", "a")), "steps[0].to[0]", "CYCLE"),
        (flow(step("a", "a")), "steps[0].to[0]", "SELF_EDGE"),
        (flow(step("a", "b", "x"), step("b")), "steps[0].to[1]", "UNKNOWN_RECEIVER"),
        (flow(step("a", "b", "b"), step("b")), "steps[0].to[1]", "DUPLICATE_EDGE"),
        (flow(step("a", "b"), step("b"), step("c")), "steps[2]", "UNREACHABLE_STEP"),
        (flow(step("c"), step("a", "b"), step("b")), "steps[0]", "UNREACHABLE_STEP"),
        (flow(step("a", "b"), step("b"), step("c", "b")), "steps[2]", "TWO_TRIGGERS"),
        (flow(step("a", "b"), step("b"), step("b")), "steps[2].name", "DUPLICATE_STEP"),
        (flow(step("A")), "steps[0].name", "BAD_NAME"),
        (flow(StepSpec("a", "Work!")), "steps[0].component", "BAD_NAME"),
        (flow(step("a", prefetch=0)), "steps[0].prefetch", "OUT_OF_RANGE"),
        (flow(step("a", replicas=65)), "steps[0].replicas", "OUT_OF_RANGE"),
        (flow(step("a", timeout_s=0.0)), "steps[0].timeout", "OUT_OF_RANGE"),
        (flow(step("a", retry=RetryPolicy(attempts=0))), "steps[0].retry.attempts", "OUT_OF_RANGE"),
        (flow(step("a", retry=RetryPolicy(backoff_s=5, max_delay_s=1))), "steps[0].retry.max_delay", "OUT_OF_RANGE"),
        (flow(step("a", retry=RetryPolicy(jitter=float("nan")))), "steps[0].retry.jitter", "OUT_OF_RANGE"),
        (flow(step("a", retry=RetryPolicy(on=("BUSY", "no")))), "steps[0].retry.on[1]", "BAD_ERROR_CODE"),
        (flow(step("a", retry=RetryPolicy(on=("X",) * 33))), "steps[0].retry.on", "BAD_ERROR_CODE"),
        (flow(step("a", rate_limit=-1)), "steps[0].rate_limit", "OUT_OF_RANGE"),
        (flow(step("a", retry=RetryPolicy(backoff_s=-1))), "steps[0].retry.backoff", "OUT_OF_RANGE"),
        (flow(step("a", timeout_s=float("nan"))), "steps[0].timeout", "OUT_OF_RANGE"),
        (flow(step("a", config={"x": "y" * 70_000})), "steps[0].config", "CONFIG_TOO_BIG"),
        (flow(step("a", every_s=0.009)), "steps[0].every", "OUT_OF_RANGE"),
        (flow(step("a", every_s=86_401.0)), "steps[0].every", "OUT_OF_RANGE"),
        (flow(step("a", every_s=float("nan"))), "steps[0].every", "OUT_OF_RANGE"),
        (flow(step("a", every_s=0.0105)), "steps[0].every", "OUT_OF_RANGE"),
        (flow(step("a", "b"), step("b", every_s=1.0)), "steps[1].every", "NOT_A_TIMER"),
        (flow(step("a", key="customer")), "steps[0].key", "BAD_KEY"),
        (flow(step("a", key="header:c", slots=65)), "steps[0].slots", "OUT_OF_RANGE"),
        (flow(step("a", slots=4)), "steps[0].slots", "SLOTS_WITHOUT_KEY"),
        (flow(step("a", key="header:c", slots=4, replicas=5)), "steps[0].replicas", "TOO_FEW_SLOTS"),
        (
            flow(
                *(step(f"s{n}", f"s{n + 1}", exactly_once=True, slots=64) for n in range(10)),
                step("s10", key="header:c"),
            ),
            "steps",
            "TOO_MANY_SLOTS",
        ),
        (flow(step("a", on_error="stop")), "steps[0].on_error", "BAD_VALUE"),
        (
            flow(step("a", on_error=SUSPEND_FLOW, error_step=HANDLER), step("h")),
            "steps[0].on_error",
            "TWO_ERROR_POLICIES",
        ),
        (flow(step("h", error_step=HANDLER)), "steps[0].on_error.step", "SELF_EDGE"),
        (flow(step("a", error_step=HANDLER)), "steps[0].on_error.step", "UNKNOWN_RECEIVER"),
        (flow(step("a"), error_step=HANDLER), "on_error.step", "UNKNOWN_RECEIVER"),
        (flow(step("h", "a"), step("a", error_step=HANDLER)), "steps[0].to[0]", "CYCLE"),
        (flow(step("a", "b"), step("b", error_step=ErrorStep("a"))), "steps[0].to[0]", "CYCLE"),
        (flow(step("a", error_step=HANDLER), step("h", error_step=ErrorStep("a"))), "steps[0].on_error.step", "CYCLE"),
        (flow(step("h", "a"), step("a"), error_step=HANDLER), "on_error.step", "UNUSED_ERROR_STEP"),
        (flow(step("a", error_step=HANDLER), step("h", every_s=1.0)), "steps[1].every", "NOT_A_TIMER"),
        (flow(step("a"), history=HistorySpec(count=0)), "history.count", "OUT_OF_RANGE"),
        (flow(step("a"), history=HistorySpec(age_s=59)), "history.age", "OUT_OF_RANGE"),
        (flow(step("a"), reply_timeout_s=301.0), "reply_timeout", "OUT_OF_RANGE"),
        (flow(step("a"), max_waiting=0), "max_waiting", "OUT_OF_RANGE"),
        (flow(*(step(f"s{n}", f"s{n + 1}") for n in range(100)), step("s100")), "steps", "TOO_MANY_STEPS"),
    ],
)
def test_a_wrong_flow_is_refused_at_its_path(spec: FlowSpec, path: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_flow(spec)
    assert refusal.value.reason == reason
    assert refusal.value.violations[0].field == path


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(InvalidInput, match="type"):
        check_flow(FlowSpec("", (step("a"),)))


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(InvalidInput) as refusal:
        check_flow(flow(step("a", "x", prefetch=0), step("B")))
    fields = [violation.field for violation in refusal.value.violations]
    assert fields == ["steps[0].prefetch", "steps[1].name", "steps[0].to[0]"]
    assert "(and 2 more)" in str(refusal.value)


@st.composite
def acyclic_flows(draw: st.DrawFn) -> FlowSpec:
    """Every step but the first is reached from an earlier one; shown in any order."""
    count = draw(st.integers(1, 12))
    receivers: list[set[int]] = [set() for _ in range(count)]
    for index in range(1, count):
        for sender in draw(st.sets(st.integers(0, index - 1), min_size=1, max_size=3)):
            receivers[sender].add(index)
    steps = [step(f"s{index}", *(f"s{other}" for other in sorted(to))) for index, to in enumerate(receivers)]
    return flow(*draw(st.permutations(steps)))


@given(acyclic_flows())
def test_a_valid_flow_has_its_trigger_first_and_senders_before_receivers(spec: FlowSpec) -> None:
    graph = check_flow(spec)
    assert graph.trigger == graph.order[0] == "s0"
    position = {name: index for index, name in enumerate(graph.order)}
    assert len(position) == len(spec.steps)
    assert all(position[item.name] < position[receiver] for item in spec.steps for receiver in item.to)


@given(acyclic_flows(), st.data())
def test_an_edge_back_is_a_cycle(spec: FlowSpec, data: st.DataObject) -> None:
    order = check_flow(spec).order
    if len(order) < 2:
        return
    by_name = {item.name: item for item in spec.steps}
    last = by_name[order[-1]]
    sender = data.draw(st.sampled_from([item for item in spec.steps if last.name in item.to]))
    changed = [StepSpec(last.name, "work", to=(sender.name,)) if item is last else item for item in spec.steps]
    with pytest.raises(InvalidInput) as refusal:
        check_flow(flow(*changed))
    assert refusal.value.reason == "CYCLE"


def test_what_a_flow_says_about_errors_counts_for_whoever_does_not_lead_away_from_the_error_step() -> None:
    spec = flow(
        step("a", "b", "c"),
        step("b", on_error=SUSPEND_FLOW),
        step("c", error_step=ErrorStep("own", dead_letter=True)),
        step("h", "after"),
        step("after"),
        step("own"),
        error_step=HANDLER,
    )
    assert error_steps(spec) == {"a": HANDLER, "c": ErrorStep("own", dead_letter=True)}
    graph = check_flow(spec)
    assert (graph.trigger, {*graph.order}) == ("a", {"a", "b", "c", "h", "after", "own"})
    assert graph.order.index("a") < graph.order.index("h")
    assert graph.order.index("c") < graph.order.index("own")
