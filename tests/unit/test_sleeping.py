"""Steps of ordinary flows that sleep and wake, on a mesh in memory: exact stories (laws: test_planner)."""

from __future__ import annotations

import dataclasses

import msgspec
import pytest

from headrace.model.errors import WrongState
from headrace.model.flow_hooks import HookRecord
from headrace.model.flow_spec import FlowSpec, StepSpec
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.flow_health import Health, flow_health
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.sleeping import sleepers
from services.orchestrator.domain.snapshot import Progress, Snapshot
from tests.support.planned_world import World

STEPS = (StepSpec("order", "hook", to=("price",)), StepSpec("price", "work", to=("check",), replicas=2),
         StepSpec("check", "work"))  # fmt: skip
EVERY_STEP = {"order", "price", "check"}


def running(flow_type: str = "ordinary") -> World:
    world = World(FlowSpec(flow_type, STEPS))
    for verb in ("publish", "start"):
        world.verb(verb)
        world.converge()
    return world


def steps_of(world: World) -> set[str]:
    return {view.step for view in world.instances.values()}


def planned(snapshot: Snapshot, kind: type) -> list[do.Action]:
    return [action for action in make_plan(snapshot).actions if isinstance(action, kind)]


def test_idle_steps_of_an_ordinary_flow_sleep_and_those_of_a_realtime_flow_run() -> None:
    asleep, awake = running(), running("realtime")
    assert (asleep.flow.state, steps_of(asleep)) == (FlowState.SLEEPING, set())
    assert (awake.flow.state, steps_of(awake)) == (FlowState.RUNNING, EVERY_STEP)
    assert sleepers(asleep.snapshot()) == EVERY_STEP
    assert flow_health(asleep.snapshot(), {}, agent_known=True) == Health.SERVING


def test_a_message_wakes_the_step_that_it_waits_for_and_no_other() -> None:
    world = running()
    assert world.inject()
    started = planned(world.snapshot(), do.StartInstance)
    assert [action.instance.step for action in started] == ["order"]  # type: ignore[union-attr]
    world.converge()
    assert world.handled == {0}
    assert [step for _, step in world.handled_by] == ["order", "price", "check"]
    assert world.flow.state == FlowState.SLEEPING


def test_a_nudge_wakes_before_the_message_is_stored() -> None:
    world = running()
    nudged = dataclasses.replace(world.snapshot(), nudged=frozenset({"price"}))
    started = planned(nudged, do.StartInstance)
    assert [action.instance.replica for action in started] == [0, 1]  # type: ignore[union-attr]


def test_what_comes_while_a_step_gives_way_has_it_begin_anew() -> None:
    world = running()
    world.inject()
    for _ in range(40):  # until the trigger was told to give way
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            world.apply(snapshot, action)
        world.settle()
        if any(status.gave_way for status in world.statuses.values()):
            break
    giving_way = {name for name, status in world.statuses.items() if status.gave_way}
    assert giving_way
    world.inject()
    stopped = planned(world.snapshot(), do.StopInstance)
    assert {action.name for action in stopped} == giving_way  # type: ignore[union-attr]
    world.converge()
    assert world.handled == {0, 1}


def test_a_step_with_a_waiting_message_is_not_put_to_sleep() -> None:
    world = running()
    world.inject()
    snapshot = world.snapshot()
    for action in make_plan(snapshot).actions:
        world.apply(snapshot, action)
    for name in list(world.instances):
        world.come_up(name)
    world.rest()  # it says that it is idle: the message is not delivered yet
    assert not planned(world.snapshot(), do.CallInstance)
    assert not planned(world.snapshot(), do.StopInstance)


def test_one_busy_replica_keeps_the_others_awake() -> None:
    world = running()
    world.inject()
    for _ in range(60):
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            world.apply(snapshot, action)
        for name in list(world.instances):
            world.come_up(name)
        world.handle_one()
        of_step = [name for name in world.statuses if world.instances[name].step == "price"]
        if len(of_step) == 2:
            break
    first, second = of_step
    for name, idle in ((first, True), (second, False)):
        world.statuses[name] = dataclasses.replace(world.statuses[name], progress=Progress.ACTIVE, may_sleep=idle)
    world.stored.clear()
    called = [action.name for action in planned(world.snapshot(), do.CallInstance)]  # type: ignore[union-attr]
    assert first not in called
    world.statuses[second] = dataclasses.replace(world.statuses[second], may_sleep=True)
    assert {first, second} <= {action.name for action in planned(world.snapshot(), do.CallInstance)}  # type: ignore[union-attr]


@pytest.mark.parametrize("verb", ["restart", "suspend", "scale", "stop", "rollback"])
def test_every_verb_takes_a_flow_that_sleeps(verb: str) -> None:
    world = running()
    if verb == "rollback":
        world.draft()
        world.verb("publish")
        world.converge()
    world.verb(verb)
    world.converge()
    expected = {"suspend": FlowState.SUSPENDED, "stop": FlowState.STOPPED}.get(verb, FlowState.SLEEPING)
    assert world.flow.state == expected
    if verb == "suspend":
        world.inject()
        world.converge()
        assert not world.instances, "a suspended flow wakes nobody"
        world.verb("resume")
        world.converge()
        assert world.handled == {0}
        assert world.flow.state == FlowState.SLEEPING


def test_messages_of_a_deployment_that_drains_wake_its_own_steps() -> None:
    world = running()
    world.inject()
    old = world.flow.active
    world.verb("restart", limit_s=500.0)
    for _ in range(30):  # the new deployment takes over while nobody handles what the old one has
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            world.apply(snapshot, action)
        for name in list(world.instances):
            world.come_up(name)
            world.warm(name)
    assert world.flow.active == old + 1
    world.converge()
    assert world.handled_by[:3] == [(old, "order"), (old, "price"), (old, "check")]


@pytest.mark.parametrize("mode", ["DRAIN", "DROP"])
@pytest.mark.parametrize("flow_type", ["ordinary", "realtime"])
def test_a_stopped_deployment_runs_its_shutdown_hook_once_also_if_it_sleeps(flow_type: str, mode: str) -> None:
    world = running(flow_type)
    world.hooks[1] = HookRecord("{}", shutdown=True)
    world.verb("stop", mode)
    world.converge()
    assert (world.flow.state, world.concluded, world.instances) == (FlowState.STOPPED, [1], {})


def test_a_hook_that_does_not_end_is_given_up() -> None:
    world = running()
    world.hooks[1] = HookRecord("{}", shutdown=True)
    world.verb("stop")
    for _ in range(20):
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            if not (isinstance(action, do.CallInstance) and action.verb == do.CONCLUDE):
                world.apply(snapshot, action)
        for name in list(world.instances):
            world.come_up(name)
    assert world.flow.state == FlowState.STOPPING
    assert steps_of(world) == {"order"}
    world.now += 100.0
    world.converge()
    assert (world.flow.state, world.concluded) == (FlowState.STOPPED, [])


def test_a_listener_never_sleeps() -> None:
    world = running("realtime")
    plan = world.plans[1]
    steps = tuple(msgspec.structs.replace(step, kind="listener") if step.name == "order" else step
                  for step in plan.steps)  # fmt: skip
    ordinary = msgspec.structs.replace(plan, flow_type="ordinary", steps=steps)
    assert [step.name for step in steps if not ordinary.may_sleep(step.name)] == ["order"]


def test_the_type_of_a_flow_that_runs_stays_also_while_it_sleeps() -> None:
    world = running()
    world.spec = msgspec.structs.replace(world.spec, type="realtime")
    with pytest.raises(WrongState) as refused:
        world.draft()
    assert "SLEEPING" in str(refused.value)
