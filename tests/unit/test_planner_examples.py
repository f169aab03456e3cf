"""What the planner does in single cases, each told from its beginning."""

from __future__ import annotations

import contextlib

import pytest

from headrace.model.deployment import DeploymentPhase
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.deployment_phases import OVER, TRANSITIONS, move
from services.orchestrator.domain.documents import decode, encode
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.snapshot import Progress
from tests.support.planned_world import Refused, fresh


def test_a_start_takes_few_rounds_and_ends_running() -> None:
    world = fresh()
    world.verb("start")
    rounds = 0
    while world.flow.state != FlowState.RUNNING and rounds < 30:
        rounds += 1
        world.settle()
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
    assert world.flow.state == FlowState.RUNNING
    assert rounds <= 14


def test_consumers_are_there_before_any_instance_is_prepared() -> None:
    world = fresh()
    world.verb("start")
    for _ in range(20):
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            if getattr(action, "verb", "") == "Prepare":
                assert len(world.consumers) == 3
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
        for name in world.instances:
            world.come_up(name)
    assert all(status.progress == Progress.STARTING for status in world.statuses.values())
    assert len(world.statuses) == 4


def test_the_trigger_is_paused_until_the_ingress_is_proved() -> None:
    world = fresh()
    world.verb("start")
    for _ in range(30):
        world.settle()
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
        trigger = world.consumers.get("d1_order")
        if trigger is not None and not trigger.paused:
            assert world.flow.ingress == "d1"
            assert world.flow.ingress_confirmed
    assert trigger is not None
    assert not trigger.paused


def test_beside_a_deployment_that_works_the_new_one_starts_one_instance_after_the_other() -> None:
    world = fresh()
    world.verb("start")
    world.converge()
    world.verb("restart")
    begun: list[str] = []
    for _ in range(60):
        snapshot = world.snapshot()
        actions = make_plan(snapshot).actions
        starts = [action.instance.name for action in actions if isinstance(action, do.StartInstance)]
        if world.flow.ingress == "d1":
            assert len(starts) <= 1
            # None is up and unprepared while another starts.
            assert not starts or all(instance.up for instance in snapshot.instances.values())
        begun += starts
        for action in actions:
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
        world.settle()
    assert len(begun) == len(set(begun)) == 4
    assert (world.flow.state, world.flow.ingress) == (FlowState.RUNNING, "d2")


def test_a_running_flow_at_rest_needs_nothing() -> None:
    world = fresh()
    world.verb("start")
    world.converge()
    plan = make_plan(world.snapshot())
    assert plan.actions == ()
    assert plan.recheck_s is None


def test_a_restart_cancelled_before_the_old_deployment_drains_leaves_it_running() -> None:
    """Its pins are resolved in the round after which the ingress would have been parked."""
    world = fresh()
    world.verb("start")
    world.converge()
    world.verb("restart", restart=True)
    snapshot = world.snapshot()
    for action in make_plan(snapshot).actions:
        world.apply(snapshot, action)
    assert world.states[2][0].phase == DeploymentPhase.PREPARING
    world.verb("cancel")
    world.converge()
    assert (world.flow.state, world.flow.active, world.flow.ingress) == (FlowState.RUNNING, 1, "d1")
    assert set(world.flow.live) == {1}


def test_messages_that_come_late_reopen_a_closed_deployment() -> None:
    world = fresh()
    world.verb("start")
    world.converge()
    world.verb("stop")
    while 1 not in world.flow.closed:
        world.settle()
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
    world.stored.append(("d1", "check", world.accepted))
    world.accepted += 1
    world.converge()
    assert world.handled == {0}
    assert world.flow.state == FlowState.STOPPED


@pytest.mark.parametrize("phase", list(DeploymentPhase))
def test_only_the_table_moves_a_deployment_and_each_move_raises_its_generation(phase: DeploymentPhase) -> None:
    world = fresh()
    world.verb("start")
    world.converge()
    state = world.states[1][0]
    for target in DeploymentPhase:
        before = type(state)(phase, 7, {})
        if target in TRANSITIONS[phase]:
            assert move(before, target, 1.0).generation == 8
        else:
            with pytest.raises(ValueError, match="no transition"):
                move(before, target, 1.0)
    assert not any(TRANSITIONS[over] for over in OVER)


def test_documents_survive_storage() -> None:
    world = fresh()
    world.verb("start")
    assert decode(encode(world.flow), type(world.flow)) == world.flow
