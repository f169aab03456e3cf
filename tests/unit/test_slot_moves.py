"""Slots of a keyed step between the replicas of a running deployment: scaled, killed, slow to let go, decided anew by
an orchestrator that dies between its steps. Two durables of one slot never exist side by side, no durable is taken
from under an instance that works on it (within the limit), and in the end every slot is with its owner."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase
from headrace.model.errors import WrongState
from headrace.model.flow_spec import FlowSpec, StepSpec
from services.orchestrator.domain import actions as do
from services.orchestrator.domain import asset_plan
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.slot_handover import HAND_OVER_LIMIT_S, durables, leases, moving
from services.orchestrator.domain.snapshot import Progress, Snapshot
from tests.support.planned_world import Refused, World

SPEC = FlowSpec(
    "realtime",
    (StepSpec("order", "hook", to=("price",)), StepSpec("price", "work", key="header:customer", slots=4, replicas=2)),
)
NOTHING: frozenset[tuple[int, int]] = frozenset()


@dataclass
class SlotWorld(World):
    """Its sidecars pull from what they were told to, and hold what is no longer theirs until they `finish` it."""

    told: dict[str, frozenset[tuple[int, int]]] = field(default_factory=dict)
    held: dict[str, frozenset[tuple[int, int]]] = field(default_factory=dict)

    def come_up(self, name: str) -> None:
        was_up = self.instances[name].up
        super().come_up(name)
        view = self.instances[name]
        if not was_up and self.statuses[name].progress == Progress.ACTIVE:  # it goes on by what the state says
            self._take(name, leases(self.states[view.deployment][0], view.step, view.replica))

    def die(self, name: str) -> None:
        super().die(name)
        self.told.pop(name, None)
        self.held.pop(name, None)

    def finish(self, name: str) -> None:
        """It works on nothing any more that is not its own."""
        if name in self.statuses:
            self.held[name] = self.told.get(name, NOTHING)
            self._report(name)

    def settle(self) -> None:
        super().settle()
        for name in list(self.instances):
            self.finish(name)

    def apply(self, snapshot: Snapshot, action: do.Action) -> None:
        if isinstance(action, do.DeleteConsumer):
            self._check_let_go(action.name)
        super().apply(snapshot, action)
        slots = [(lease.deployment, lease.step, lease.slot) for lease in map(_parsed, self.consumers) if lease]
        assert len(slots) == len(set(slots)), f"two durables of one slot: {sorted(self.consumers)}"

    def _call(self, action: do.CallInstance) -> None:
        before = self.statuses.get(action.name)
        super()._call(action)
        if self.statuses.get(action.name) is not before and action.verb != "Prepare":
            self._take(action.name, () if action.verb == "GiveWay" else action.slots)

    def _take(self, name: str, slots: tuple[tuple[int, int], ...]) -> None:
        self.told[name] = frozenset(slots)
        self.held[name] = self.held.get(name, NOTHING) | self.told[name]
        self._report(name)

    def _report(self, name: str) -> None:
        self.statuses[name] = dataclasses.replace(self.statuses[name], slots=self.held.get(name, NOTHING))

    def _check_let_go(self, durable: str) -> None:
        lease = _parsed(durable)
        state = self.states[lease.deployment][0] if lease is not None else None
        if lease is None or state is None or state.phase != DeploymentPhase.ACTIVE:
            return
        if self.now > state.slots_moved_at + HAND_OVER_LIMIT_S:
            return
        for name, held in self.held.items():
            at_it = (lease.slot, lease.generation) in held and self.instances[name].step == lease.step
            assert not at_it, f"{durable} is taken from {name}, which works on it"


def _parsed(durable: str) -> subjects.SlotConsumer | None:
    return subjects.parse_slot_consumer(durable)


class SlotMoves(RuleBasedStateMachine):
    """One flow that runs; the last step is keyed, with four slots."""

    def __init__(self) -> None:
        super().__init__()
        self.world = SlotWorld(SPEC)
        self.world.verb("publish")
        self.world.converge()
        self.world.verb("start")
        self.world.converge()

    def of_keyed_step(self) -> list[str]:
        return sorted(name for name, view in self.world.instances.items() if view.step == "price")

    @rule()
    def scale(self) -> None:
        try:
            self.world.verb("scale", limit_s=100.0)
        except WrongState:  # one scale at a time
            return

    @rule()
    def message(self) -> None:
        self.world.inject()

    @rule(data=strategies.data())
    def an_instance_does_what_it_can(self, data: strategies.DataObject) -> None:
        name = data.draw(strategies.sampled_from(sorted(self.world.instances)))
        self.world.come_up(name)
        self.world.warm(name, fail=data.draw(strategies.integers(0, 9)) == 0)

    @precondition(lambda self: self.of_keyed_step())
    @rule(data=strategies.data())
    def one_finishes(self, data: strategies.DataObject) -> None:
        self.world.finish(data.draw(strategies.sampled_from(self.of_keyed_step())))

    @precondition(lambda self: self.of_keyed_step())
    @rule(data=strategies.data())
    def one_dies(self, data: strategies.DataObject) -> None:
        self.world.die(data.draw(strategies.sampled_from(self.of_keyed_step())))

    @rule(seconds=strategies.sampled_from([1.0, 10.0, 45.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(known=strategies.booleans())
    def the_agent(self, known: bool) -> None:
        self.world.agent_known = known

    @rule(most=strategies.integers(1, 12))
    def decide(self, most: int) -> None:
        """A look, and what follows from it: all, or as much as an orchestrator lived to do."""
        snapshot = self.world.snapshot()
        for action in make_plan(snapshot).actions[:most]:
            try:
                self.world.apply(snapshot, action)
            except Refused:
                continue

    def teardown(self) -> None:
        world = self.world
        world.converge()
        snapshot = world.snapshot()
        [number] = [item for item in world.flow.live if world.states[item][0].phase == DeploymentPhase.ACTIVE]
        plan, state = world.plans[number], world.states[number][0]
        assert not moving(snapshot, number, "price")
        assert {name for name in world.consumers if _parsed(name)} == set(durables(plan, state, "price"))
        owned = sorted(lease for name in self.of_keyed_step() for lease in world.held.get(name, NOTHING))
        assert owned == [(slot, owner.generation) for slot, owner in enumerate(state.slots["price"])]
        shares = [len(world.held.get(name, NOTHING)) for name in self.of_keyed_step()]
        assert max(shares) - min(shares) <= 1
        super().teardown()


TestSlotMoves = SlotMoves.TestCase
TestSlotMoves.settings = settings(
    max_examples=40, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_taking_a_slot_without_asking_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The laws can fail: where nobody waits for the former owner they do."""
    monkeypatch.setattr(asset_plan, "let_go_of", lambda snapshot, durable: True)
    many = settings(max_examples=300, stateful_step_count=40, deadline=None, phases=[Phase.generate], database=None)
    with pytest.raises(AssertionError, match="works on it"):
        run_state_machine_as_test(SlotMoves, settings=many)
