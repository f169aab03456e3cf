"""From facts to findings: each cause from what it is known by, chains of full edges, order, and no false alarm."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.causes import CAUSES, Cause
from services.orchestrator.domain.diagnosis import explain, is_healthy
from services.orchestrator.domain.facts import (
    CallFacts,
    DeploymentFacts,
    EdgeFacts,
    Facts,
    FlowFacts,
    InstanceFacts,
    LetterFacts,
    MeshFacts,
    StepFacts,
    SuspensionFacts,
)

CALL = CallFacts("m-1", "e-1")
FULL = EdgeFacts("price", 3, "full", 2.0)
C = Cause


def step(name: str, *receivers: str, kind: str = "action", **changes: object) -> StepFacts:
    known = {field: value for field, value in changes.items() if field in StepFacts.__slots__}
    rest = {field: value for field, value in changes.items() if field not in known}
    instance = replace(InstanceFacts(f"default.f.d1.{name}.0", since_input_s=1.0), **rest)  # type: ignore[arg-type]
    return replace(StepFacts(name, 1, receivers, kind, instances=(instance,)), **known)  # type: ignore[arg-type]


def facts(*steps: StepFacts, mesh: MeshFacts | None = None, **flow: object) -> Facts:
    given_flow = FlowFacts("f", "RUNNING", trigger="entry", active=1, deployments=(DeploymentFacts(1, "ACTIVE", 99.0),))
    steps = (step("entry", "price", kind="trigger"), *steps) if all(s.name != "entry" for s in steps) else steps
    return Facts(mesh or MeshFacts(), replace(given_flow, **flow), steps)  # type: ignore[arg-type]


STEP_CAUSES = [
    (C.NOT_SCHEDULED, {"known": False, "up": False, "answers": False}),
    (C.SIDECAR_GONE, {"up": False, "answers": False, "starts": 4, "last_exit": "was killed by signal 9"}),
    (C.SIDECAR_SILENT, {"answers": False, "pid": 77}),
    (C.SIDECAR_CUT_OFF, {"broker_connected": False}),
    (C.SIDECAR_CUT_OFF, {"broker_ms": None}),
    (C.POISON_MESSAGE, {"suspects": (replace(CALL, crashes=2),)}),
    (C.START_FAILED, {"state": "FAILED", "cause": "init failed: no licence"}),
    (C.WRONG_CREDENTIALS, {"state": "FAILED", "cause": "init failed: password authentication failed for user x"}),
    (C.CRASH_LOOP, {"state": "FAILED", "cause_reason": "COMPONENT_CRASH_LOOP"}),
    (C.COMPONENT_DEAD, {"component_pid": 0, "component_process": "gone"}),
    (C.COMPONENT_STOPPED, {"component_process": "stopped", "component_pid": 5}),
    (C.COMPONENT_BLOCKED, {"cause_reason": "NOT_RESPONDING"}),
    (C.COMPONENT_BLOCKED, {"running": (replace(CALL, runs_s=1.5),), "stacks_how": "signal"}),
    (C.WARM_UP_SLOW, {"state": "STARTING", "stage": "INIT", "stage_s": 12.0}),
    (C.COMPONENT_BUSY, {"running": (replace(CALL, runs_s=9.0),), "waiting": 4}),
    (C.COMPONENT_BUSY, {"running": (replace(CALL, runs_s=1.2),), "waiting": 4, "prefetch": 1, "held": {"running": 1}}),
    (C.WRONG_CREDENTIALS, {"error_code": "HTTP_401", "error_text": "no", "error_s": 1.0}),
    (C.RETRY_DELAY, {"retrying": (replace(CALL, due_s=4.0, code="SHAKY"),)}),
    (C.REBOUND_DELAY, {"retrying": (replace(CALL, due_s=4.0, rebound=True),)}),
    (C.STEP_RATE_LIMIT, {"paced": 3, "rate_limit": 5.0}),
    (C.NOTHING_DELIVERED, {"cause_reason": "SLOT_LOST", "cause": "generation 4 has it"}),
    (C.OUTPUT_UNANSWERED, {"edges": (EdgeFacts("x", 2, "unanswered", 3.0),)}),
    (C.STEP_TOO_SLOW, {"waiting": 9000, "done": 4}),
    (C.STEP_TOO_SLOW, {"waiting": 10, "done": 4, "oldest_s": 30.0}),
    (C.UNEXPLAINED, {"waiting": 10, "oldest_s": 30.0}),
]


@pytest.mark.parametrize(("cause", "changes"), STEP_CAUSES, ids=lambda value: str(value)[:40])
def test_a_trouble_of_a_step_is_named_from_its_facts(cause: Cause, changes: dict[str, object]) -> None:
    first = explain(facts(step("price", **changes)))[0]
    assert (first.cause, first.step) == (cause, "price")
    assert first.summary
    assert all("{" not in command for command in first.commands("f"))


MESH_CAUSES = [
    (C.BROKER_UNREACHABLE, {"broker_problem": "no answer", "broker_ms": None}),
    (C.BROKER_REFUSES, {"broker_problem": "authorization violation", "broker_refuses": True}),
    (C.BROKER_FULL, {"store_problem": "not acknowledged", "store_ms": None}),
    (C.BROKER_SLOW, {"store_ms": 900.0}),
    (C.NO_LEADER, {"leads": False, "leader": "two", "leader_problem": "nobody accepts connections"}),
    (C.NO_LEADER, {"leads": False}),
    (C.AGENT_GONE, {"agent_known": False}),
    (C.GATEWAY_GONE, {"gateways": 0}),
    (C.CLOCK_SKEW, {"broker_clock_ahead_s": -3.0}),
]


@pytest.mark.parametrize(("cause", "changes"), MESH_CAUSES, ids=lambda value: str(value)[:40])
def test_a_trouble_of_the_mesh_is_named_from_its_facts(cause: Cause, changes: dict[str, object]) -> None:
    found = explain(facts(step("price"), mesh=replace(MeshFacts(), **changes)))  # type: ignore[arg-type]
    assert found[0].cause == cause
    assert not is_healthy(found)


FLOW_CAUSES = [
    (C.FLOW_STOPPED, {"state": "STOPPED"}),
    (C.FLOW_SUSPENDED, {"state": "SUSPENDED", "suspension": SuspensionFacts(3.0, 2)}),
    (C.SUSPENDED_BY_MESSAGE, {"state": "SUSPENDED", "suspension": SuspensionFacts(3.0, 2, step="price", code="X")}),
    (C.DRAINING_TOO_LONG, {"deployments": (DeploymentFacts(1, "DRAINING", 90.0, 3, past_limit=True),)}),
    (C.OPERATION_WAITS, {"operation": "publish", "operation_s": 60.0}),
    (C.FLOW_RATE_LIMIT, {"refused": {"RATE_LIMITED": 4}, "rate_limit": 1.0}),
    (C.MESSAGES_FAIL, {"letters": LetterFacts(2, "price", "TIMEOUT")}),
    (C.POISON_MESSAGE, {"letters": LetterFacts(1, "price", "COMPONENT_DIED")}),
]


@pytest.mark.parametrize(("cause", "changes"), FLOW_CAUSES, ids=lambda value: str(value)[:40])
def test_a_trouble_of_the_flow_is_named_from_its_facts(cause: Cause, changes: dict[str, object]) -> None:
    found = explain(facts(step("price"), **changes))
    assert found[0].cause == cause
    assert not is_healthy(found)


def test_a_timer_that_does_not_tick() -> None:
    timer = step("entry", kind="trigger", every_s=1.0, since_input_s=60.0)
    found = explain(facts(timer, since_tick_s=60.0))
    assert [item.cause for item in found] == [C.TIMER_LATE]
    assert is_healthy(explain(facts(timer, since_tick_s=2.0)))


def test_full_edges_are_followed_to_the_step_that_is_the_cause() -> None:
    chain = facts(
        step("entry", "price", kind="trigger", edges=(FULL,), waiting=10, held={"settling": 4}),
        step("price", "check", edges=(replace(FULL, receiver="check"),), waiting=10),
        step("check", running=(replace(CALL, runs_s=40.0),), waiting=10, done=1),
    )
    found = explain(chain)
    assert [(item.cause, item.step) for item in found[:3]] == [
        (C.COMPONENT_BUSY, "check"),
        (C.DOWNSTREAM_FULL, "entry"),
        (C.DOWNSTREAM_FULL, "price"),
    ]
    assert found[0].affects == ("price", "entry")
    assert found[1].evidence[-1] == "the cause is at step 'check'"
    assert found[1].commands("f") == ["headrace why f/price"]


def test_a_step_that_fills_its_edge_is_too_slow_though_nothing_else_is_wrong_with_it() -> None:
    found = explain(facts(step("entry", "price", edges=(FULL,), waiting=5), step("price", waiting=10, done=3)))
    assert (found[0].cause, found[0].step, found[0].affects) == (C.STEP_TOO_SLOW, "price", ("entry",))


def test_who_asks_about_a_step_hears_what_is_downstream_of_it_and_nothing_of_its_siblings() -> None:
    dead = {"component_pid": 0, "component_process": "gone"}
    known = facts(step("entry", "price", "mail", kind="trigger"), step("price"), step("mail", **dead))
    assert explain(known, "price")[0].cause in (C.NOTHING_WRONG, C.NO_INPUT)
    assert explain(known, "entry")[0].step == explain(known, "mail")[0].step == "mail"


def test_one_of_two_instances_is_named_and_the_step_is_slow_not_stalled() -> None:
    well = InstanceFacts("a", done=5, since_input_s=0.1)
    two = replace(step("price", waiting=3), instances=(well, InstanceFacts("b", answers=False, pid=9)))
    first = explain(facts(two))[0]
    assert (first.cause, first.instance, first.severity.name) == (C.SIDECAR_SILENT, "b", "SLOW")


def test_two_causes_are_both_named_the_more_fundamental_first() -> None:
    busy = step("price", running=(replace(CALL, runs_s=9.0),), waiting=2)
    suspended = SuspensionFacts(3.0, 2)
    found = [item.cause for item in explain(facts(busy, state="SUSPENDED", suspension=suspended))]
    assert found[:2] == [C.FLOW_SUSPENDED, C.COMPONENT_BUSY]


def test_without_the_broker_that_alone_is_said() -> None:
    assert [item.cause for item in explain(Facts(MeshFacts(broker_problem="gone")))] == [C.BROKER_UNREACHABLE]


@given(
    waiting=st.integers(0, 7_000),
    in_flight=st.integers(0, 64),
    done=st.integers(1, 10_000),
    oldest=st.floats(0, 4.9),
    runs=st.floats(0, 0.99),
    broker=st.floats(0.05, 40),
    error=st.floats(0, 100),
)
def test_a_flow_that_moves_raises_no_alarm_whatever_its_load(
    waiting: int, in_flight: int, done: int, oldest: float, runs: float, broker: float, error: float
) -> None:
    busy = step(
        "price", waiting=waiting, in_flight=in_flight, done=done, oldest_s=oldest, broker_ms=broker,
        running=(replace(CALL, runs_s=runs),), held={"running": in_flight}, error_code="NO_PRICE", error_s=error,
    )  # fmt: skip
    assert is_healthy(explain(facts(busy, mesh=MeshFacts(broker_ms=broker, store_ms=broker))))


def test_every_cause_has_a_rule_and_every_cause_of_the_api_is_tried() -> None:
    assert list(CAUSES) == list(Cause)
    tried = {cause for cause, _ in (*STEP_CAUSES, *MESH_CAUSES, *FLOW_CAUSES)}
    elsewhere = {C.MESH_NOT_RUNNING, C.ORCHESTRATOR_UNREACHABLE, C.DOWNSTREAM_FULL, C.TIMER_LATE, C.NO_INPUT}
    assert tried | elsewhere | {C.NOTHING_WRONG} == set(Cause)


def test_what_is_typed_asks_for_one_instance_more_than_there_are() -> None:
    two = replace(step("price", waiting=3), instances=(InstanceFacts("a", running=(replace(CALL, runs_s=9.0),)),) * 2)
    assert explain(facts(two))[0].commands("f")[0] == "headrace flow scale f price=3"
