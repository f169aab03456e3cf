"""Laws of the planner, tried by Hypothesis on a mesh in memory (tests/support/planned_world.py)."""

from __future__ import annotations

import contextlib

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headrace.model.errors import WrongState
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.planner import make_plan
from tests.support.planned_world import SPEC, Refused, fresh

ORDINARY = msgspec.structs.replace(SPEC, type="ordinary")

STREAM_ACTIONS = (do.EnsureStream, do.PurgeBarriers, do.DropMessages)


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
