"""An exclusive listener never listens beside its predecessor, whatever fails and whenever the orchestrator dies."""

from __future__ import annotations

import contextlib
import dataclasses
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import precondition, rule

from headrace.model.deployment import DeploymentPlan
from headrace.model.errors import WrongState
from headrace.model.flow_spec import FlowSpec, StepSpec
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.listener_handover import handed_over
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.snapshot import Progress
from tests.support.planned_world import Refused, World
from tests.unit.test_planner import MeshMachine

SPEC = FlowSpec("realtime", (StepSpec("listen", "port", to=("note",)), StepSpec("note", "work")))


@dataclass
class ListeningWorld(World):
    """Like its parent, with an exclusive listener as the trigger; `listening` are the processes that hold the port."""

    exclusive: bool = True
    listening: set[str] = field(default_factory=set)

    def _plan(self, document: FlowDocument, action: do.Resolve, spec: FlowSpec) -> DeploymentPlan:
        plan = super()._plan(document, action, spec)
        trigger = msgspec.structs.replace(plan.steps[0], kind="listener", exclusive=self.exclusive)
        return msgspec.structs.replace(plan, steps=(trigger, *plan.steps[1:]))

    def come_up(self, name: str) -> None:
        was_up = self.instances[name].up
        super().come_up(name)
        status = self.statuses.get(name)
        if was_up or status is None or status.progress != Progress.ACTIVE or not self._is_listener(name):
            return
        if self._phase(self.instances[name].deployment) == "ACTIVE":
            self.listening.add(name)
        else:  # it begins anew while its deployment drains: then it does not listen
            self.statuses[name] = dataclasses.replace(status, progress=Progress.DRAINED)

    def breaks(self, name: str) -> None:
        """Its component crashes again and again; between the crashes it may listen."""
        status = self.statuses.get(name)
        if status is not None and status.progress in (Progress.WARM, Progress.ACTIVE):
            self.statuses[name] = dataclasses.replace(status, progress=Progress.FAILED, cause="it broke")

    def die(self, name: str) -> None:
        super().die(name)
        self.listening.discard(name)

    def _call(self, action: do.CallInstance) -> None:
        super()._call(action)
        status = self.statuses.get(action.name)
        if status is None or not self._is_listener(action.name):
            return
        if action.verb == "Activate" and status.progress == Progress.ACTIVE:
            self.listening.add(action.name)
        if status.progress == Progress.DRAINED:
            self.listening.discard(action.name)

    def _stop(self, action: do.StopInstance) -> None:
        if action.name in self.instances and handed_over(self.snapshot()):
            self.die(action.name)
        else:
            super()._stop(action)

    def phase(self, deployment: int) -> str:
        return self._phase(deployment)

    def _is_listener(self, name: str) -> bool:
        return self.instances[name].step == "listen"

    def check_laws(self) -> None:
        super().check_laws()
        if self.exclusive:
            assert len({self.instances[name].deployment for name in self.listening}) <= 1, "two listen at once"


def fresh(*, exclusive: bool = True) -> ListeningWorld:
    world = ListeningWorld(SPEC, exclusive=exclusive)
    world.verb("publish")
    world.converge()
    return world


class ListeningMachine(MeshMachine):
    """All that happens to any flow, restarts by both strategies, and components that break while they work."""

    def __init__(self) -> None:
        super().__init__()
        self.world: ListeningWorld = fresh()  # type: ignore[assignment]
        self.old = self.world.snapshot()

    @rule(by_parking=st.booleans(), limit_s=st.sampled_from([0.0, 5.0]))
    def restart(self, by_parking: bool, limit_s: float) -> None:
        with contextlib.suppress(WrongState):
            self.world.verb("restart", limit_s=limit_s, restart=by_parking)

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data())
    def breaks(self, data: st.DataObject) -> None:
        self.world.breaks(data.draw(st.sampled_from(sorted(self.world.instances))))


TestListening = pytest.mark.timeout(300)(ListeningMachine.TestCase)  # its work is bounded, a busy machine is not
TestListening.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def running(*, exclusive: bool = True) -> ListeningWorld:
    world = fresh(exclusive=exclusive)
    world.verb("start")
    world.converge()
    return world


def step(world: ListeningWorld) -> None:
    world.settle()
    snapshot = world.snapshot()
    for action in make_plan(snapshot).actions:
        with contextlib.suppress(Refused):
            world.apply(snapshot, action)
        world.check_laws()


@pytest.mark.parametrize("by_parking", [False, True])
def test_the_gap_is_noted_while_nobody_listens_and_over_when_the_new_one_does(by_parking: bool) -> None:
    world = running()
    world.verb("restart", restart=by_parking)
    noted = 0.0
    for _ in range(60):
        step(world)
        world.now += 0.01
        if not world.listening and 1 in world.flow.live:
            noted = noted or world.flow.listening_ended_at
        if world.flow.active == 2:
            break
    assert world.flow.active == 2
    assert noted > 1000.0
    assert world.flow.listening_ended_at == 0.0
    assert {world.instances[name].deployment for name in world.listening} == {2}


def test_a_listener_that_is_not_exclusive_is_switched_without_a_gap() -> None:
    world = running(exclusive=False)
    world.verb("restart")
    for _ in range(60):
        step(world)
        assert world.listening
        if world.flow.active == 2 and not world.flow.operation:
            break
    assert world.flow.active == 2
    assert world.flow.listening_ended_at == 0.0


def test_with_strict_order_a_listener_waits_until_all_of_the_old_deployment_has_drained() -> None:
    world = running(exclusive=False)
    world.verb("restart", strict=True)
    while world.flow.target or world.flow.active == 1:
        step(world)
        if any(world.instances[name].deployment == 2 for name in world.listening):
            assert world.phase(1) in ("RETIRED", "")
    assert world.flow.active == 2


def test_a_target_that_breaks_before_it_is_warm_leaves_the_old_listener_alone() -> None:
    world = running()
    listening = set(world.listening)
    world.verb("restart")
    while "default.orders.d2.listen.0" not in world.statuses:
        step(world)
    world.statuses["default.orders.d2.listen.0"] = dataclasses.replace(
        world.statuses["default.orders.d2.listen.0"], progress=Progress.FAILED, cause="it broke"
    )
    snapshot = world.snapshot()
    for action in make_plan(snapshot).actions:
        world.apply(snapshot, action)
    world.converge()
    assert (world.flow.active, world.flow.state) == (1, FlowState.RUNNING)
    assert world.listening == listening


def test_a_target_that_breaks_after_the_old_one_was_drained_takes_over_and_says_so() -> None:
    world = running()
    world.verb("restart")
    operation = world.flow.operation
    assert operation is not None
    while not handed_over(world.snapshot()):
        step(world)
    for _ in range(40):
        for name in world.instances:
            if world.instances[name].deployment == 2:
                world.breaks(name)
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
    assert world.flow.active == 2
    assert world.operations[operation.id].done


def test_an_old_listener_that_crashes_again_and_again_is_ended_by_its_agent() -> None:
    """It cannot be told to drain, and would listen again when it recovers."""
    world = running()
    old = "default.orders.d1.listen.0"
    world.breaks(old)
    world.verb("restart")
    for _ in range(60):
        for name in list(world.instances):
            world.come_up(name)
            world.warm(name)
        snapshot = world.snapshot()
        for action in make_plan(snapshot).actions:
            with contextlib.suppress(Refused):
                world.apply(snapshot, action)
            world.check_laws()
    assert old not in world.instances
    assert world.flow.active == 2
    assert {world.instances[name].deployment for name in world.listening} == {2}
