"""Where a dead letter's message is replayed to, and when what is stuck is tried again."""

from __future__ import annotations

import pytest

from headrace.model.deployment import DeploymentPlan
from headrace.model.errors import WrongState
from services.orchestrator.domain.dead_letters import replay_target
from services.orchestrator.domain.documents import FlowDocument, SuspensionRecord
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.stuck_steps import tried_again
from tests.support.plans import plan_of

PLANS: dict[int, DeploymentPlan | None] = {number: plan_of("orders", "order", deployment=number) for number in (1, 2)}


def flow(**fields: object) -> FlowDocument:
    return FlowDocument("orders", "realtime", 1.0, **{"state": FlowState.RUNNING, "active": 2, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("closed", "phase", "goes_to"),
    [((), "DRAINING", 1), ((1,), "DRAINING", 2), ((), "RETIRED", 2), ((), "PREPARING", 2), ((), "", 2)],
)
def test_to_its_own_deployment_while_that_works_else_to_the_one_that_runs(
    closed: tuple[int, ...], phase: str, goes_to: int
) -> None:
    target = replay_target(flow(closed=closed, live=(1, 2)), PLANS, {1: phase, 2: "ACTIVE"}, 1)
    assert (target.plan.deployment, target.own) == (goes_to, goes_to == 1)


@pytest.mark.parametrize("state", [FlowState.STOPPED, FlowState.STOPPING, FlowState.STARTING])
def test_not_where_nothing_runs(state: FlowState) -> None:
    active = 1 if state == FlowState.STOPPING else 0
    with pytest.raises(WrongState, match=f"is {state}") as refused:
        replay_target(flow(state=state, active=active), PLANS, {1: "DRAINING"} if active else {}, 1)
    assert "headrace flow start orders" in refused.value.next_step


def test_a_suspended_flow_takes_replays_and_keeps_them() -> None:
    target = replay_target(flow(state=FlowState.SUSPENDED), PLANS, {2: "ACTIVE"}, 2)
    assert target.own


def test_only_what_a_message_suspended_is_tried_again() -> None:
    record = SuspensionRecord(1.0, 2.0, 10)
    by_message = SuspensionRecord(1.0, 2.0, 10, step="price", error_code="BUSY")
    assert tried_again(flow(resumed=3)) == 3
    assert tried_again(flow(resumed=3, suspension=record)) == 3
    assert tried_again(flow(resumed=3, suspension=by_message)) == 4
