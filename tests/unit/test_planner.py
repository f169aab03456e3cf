"""Laws of the planner, tried by Hypothesis on a mesh in memory (tests/support/planned_world.py)."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.model.deployment import DeploymentPhase
from headrace.model.errors import WrongState
from headrace.model.flow_spec import FlowSpec, StepSpec
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.deployment_phases import OVER, TRANSITIONS, move
from services.orchestrator.domain.documents import decode, encode
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.snapshot import Progress
from tests.support.planned_world import Refused, World

SPEC = FlowSpec(
    "realtime",
    (
        StepSpec("order", "hook", to=("price",)),
        StepSpec("price", "work", to=("check",), replicas=2),
        StepSpec("check", "work"),
    ),
)


ORDINARY = msgspec.structs.replace(SPEC, type="ordinary")

STREAM_ACTIONS = (do.EnsureStream, do.PurgeBarriers, do.DropMessages)


def fresh(spec: FlowSpec = SPEC) -> World:
    world = World(spec)
    world.verb("publish")
    world.converge()
    return world


class MeshMachine(RuleBasedStateMachine):
    """Verbs, faults and half-done plans in any order; at the end everybody does what can be done."""

    spec = SPEC
    # What a flow that runs is when nothing waits.
    at_rest = FlowState.RUNNING

    def __init__(self) -> None:
        super().__init__()
        self.world = fresh(self.spec)
        self.old = self.world.snapshot()

    @rule(
        verb=st.sampled_from(["start", "stop", "publish", "restart", "rollback"]),
        mode=st.sampled_from(["DRAIN", "DROP"]),
        limit_s=st.sampled_from([0.0, 5.0]),
        restart=st.booleans(),
        strict=st.booleans(),
    )
    def person(self, verb: str, mode: str, limit_s: float, restart: bool, strict: bool) -> None:
        with contextlib.suppress(WrongState):
            if verb == "publish":
                self.world.draft()
            self.world.verb(verb, mode, limit_s, restart=restart, strict=strict)

    @rule(rounds=st.integers(1, 12))
    def all_goes_well(self, rounds: int) -> None:
        """Else hardly any walk would come far enough for a flow to be suspended, scaled, or to drain."""
        for _ in range(rounds):
            self.world.settle()
            snapshot = self.world.snapshot()
            self._apply(snapshot, make_plan(snapshot).actions)

    @rule(verb=st.sampled_from(["suspend", "resume", "scale", "cancel", "wait", "dead-letter", "move"]))
    def person_intervenes(self, verb: str) -> None:
        with contextlib.suppress(WrongState):
            self.world.verb(verb, limit_s=5.0)

    @rule()
    def plan_and_apply(self) -> None:
        snapshot = self.world.snapshot()
        self._apply(snapshot, make_plan(snapshot).actions)

    @rule(data=st.data())
    def plan_and_crash(self, data: st.DataObject) -> None:
        """Only some of the actions happen, in any order."""
        snapshot = self.world.snapshot()
        actions = make_plan(snapshot).actions
        order = data.draw(st.permutations(range(len(actions))))
        done = data.draw(st.integers(0, len(actions)))
        self._apply(snapshot, [actions[index] for index in order[:done]])

    @rule()
    def look(self) -> None:
        """What another orchestrator, or this one before it was stopped, will act on later."""
        self.old = self.world.snapshot()

    @rule(data=st.data())
    def act_on_what_was_seen_long_ago(self, data: st.DataObject) -> None:
        """A zombie does part of an old plan: what it decides is refused, what it does at the broker is mended.

        A stale update of the stream is left to the simulation: there the ingress may go back for a moment."""
        actions = [action for action in make_plan(self.old).actions if not isinstance(action, STREAM_ACTIONS)]
        before, documents = self.world.revision, {number: item[1] for number, item in self.world.states.items()}
        chosen = data.draw(st.sets(st.integers(0, max(0, len(actions) - 1))))
        self._apply(self.old, [actions[index] for index in sorted(chosen) if index < len(actions)])
        if self.old.flow_revision != before:
            assert self.world.revision == before, "a decision on an old flow document was written"
        for number, view in self.old.deployments.items():
            if view.state_revision != documents.get(number, 0):
                assert self.world.states[number][1] == documents[number], "a decision on an old state was written"

    def _apply(self, snapshot: object, actions: object) -> None:
        for action in actions:  # type: ignore[attr-defined]
            with contextlib.suppress(Refused):
                self.world.apply(snapshot, action)  # type: ignore[arg-type]

    @rule(count=st.integers(1, 3))
    def inject(self, count: int) -> None:
        for _ in range(count):
            self.world.inject()

    @rule(count=st.integers(1, 6))
    def handle(self, count: int) -> None:
        for _ in range(count):
            self.world.handle_one()

    @precondition(lambda self: self.world.instances)
    @rule(data=st.data(), what=st.sampled_from(["up", "warm", "fail", "die"]))
    def instance(self, data: st.DataObject, what: str) -> None:
        name = data.draw(st.sampled_from(sorted(self.world.instances)))
        if what == "up":
            self.world.come_up(name)
        elif what == "die":
            self.world.die(name)
        else:
            self.world.warm(name, fail=what == "fail")

    @rule()
    def agent_restarts(self) -> None:
        for name in list(self.world.instances):
            self.world.die(name)

    @rule(known=st.booleans())
    def agent_answers(self, known: bool) -> None:
        self.world.agent_known = known

    @precondition(lambda self: self.world.consumers)
    @rule(data=st.data())
    def consumer_vanishes(self, data: st.DataObject) -> None:
        self.world.consumers.pop(data.draw(st.sampled_from(sorted(self.world.consumers))))

    @rule(seconds=st.sampled_from([0.1, 10.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @invariant()
    def laws_hold(self) -> None:
        self.world.check_laws()

    def teardown(self) -> None:
        self.world.converge()
        if self.world.flow.state == FlowState.SUSPENDED:
            self.world.verb("resume")
            self.world.converge()
        self.world.sweep_pins()
        self.world.check_laws()
        flow = self.world.flow
        assert flow.state in (FlowState.STOPPED, self.at_rest)
        assert all(document.done for document in self.world.operations.values())
        wanted = {flow.active} - {0}
        present = {view.deployment for view in self.world.instances.values()}
        assert present == (wanted if self.at_rest == FlowState.RUNNING else set())
        assert set(flow.live) == wanted
        assert {name.split("_")[0] for name in self.world.consumers} == {f"d{number}" for number in wanted}
        assert {holder for holder in self.world.pinned if holder.startswith("d")} == {f"d{number}" for number in wanted}
        if flow.state == self.at_rest:
            assert flow.ingress == f"d{flow.active}"


class OrdinaryMachine(MeshMachine):
    """The same with steps that sleep whenever nothing waits: who is idle says so at any moment."""

    spec = ORDINARY
    at_rest = FlowState.SLEEPING

    @rule()
    def rest(self) -> None:
        self.world.rest()


class InterventionMachine(MeshMachine):
    """Begins with a flow that runs and drains now and then, so that interventions fit more often."""

    def __init__(self) -> None:
        super().__init__()
        self.world.verb("start")
        self.world.converge()

    @rule(
        verb=st.sampled_from(["restart", "restart", "publish", "rollback", "stop", "start"]),
        mode=st.sampled_from(["DRAIN", "DROP"]),
        restart=st.booleans(),
    )
    def person(self, verb: str, mode: str, restart: bool) -> None:
        with contextlib.suppress(WrongState):
            if verb == "publish":
                self.world.draft()
            self.world.verb(verb, mode, 5.0, restart=restart)

    @rule(count=st.integers(0, 3))
    def messages_wait_while_others_drain(self, count: int) -> None:
        """Planning goes on, but nobody handles messages: what is there stays for a choice."""
        for _ in range(count):
            self.world.inject()
        self._nobody_handles(rounds=8)

    @rule(count=st.integers(1, 3), choice=st.sampled_from(["move", "move", "dead-letter", "wait"]))
    def a_drain_passes_its_limit(self, count: int, choice: str) -> None:
        """A switch under messages that nobody handles, until a person chooses; walks hardly find that by chance."""
        for _ in range(count):
            self.world.inject()
        with contextlib.suppress(WrongState):
            self.world.verb("restart", limit_s=500.0)
        self._nobody_handles(rounds=14)
        self.world.now += 100.0
        with contextlib.suppress(WrongState):
            self.world.verb(choice, limit_s=5.0)

    def _nobody_handles(self, rounds: int) -> None:
        for _ in range(rounds):
            for name in list(self.world.instances):
                self.world.come_up(name)
                self.world.warm(name)
            snapshot = self.world.snapshot()
            self._apply(snapshot, make_plan(snapshot).actions)


# Their work is bounded, how long a busy machine takes for it is not.
TestInterventions = pytest.mark.timeout(300)(InterventionMachine.TestCase)
TestInterventions.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestOrdinary = pytest.mark.timeout(300)(OrdinaryMachine.TestCase)
TestOrdinary.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestMesh = pytest.mark.timeout(300)(MeshMachine.TestCase)
TestMesh.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_nobody_works_on_what_could_not_move_before_the_stream_takes_what_they_make() -> None:
    """The messages were to move, the place was closed, and then a RESTART left nothing to move to."""
    machine = InterventionMachine()
    machine.a_drain_passes_its_limit(choice="move", count=1)
    machine.agent_restarts()
    machine.agent_answers(known=False)
    machine.time_passes(seconds=10.0)
    machine.messages_wait_while_others_drain(count=0)
    machine.person(mode="DRAIN", restart=True, verb="restart")
    machine.all_goes_well(rounds=5)
    machine.teardown()


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
