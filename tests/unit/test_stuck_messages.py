"""Which durables are let begin anew: only those that have nothing to deliver, for long enough, though they should."""

from __future__ import annotations

import dataclasses

import pytest

from headrace.model.flow_spec import FlowSpec, StepSpec
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.snapshot import ConsumerView, Snapshot, StreamView, Suspicion
from services.orchestrator.domain.stuck_messages import SURE_S, suspicions
from tests.support.planned_world import World

SPEC = FlowSpec("realtime", (StepSpec("order", "hook", to=("price",)), StepSpec("price", "work")))
PLACE = ("d1", "price", 0)
NOTHING: dict[str, Suspicion] = {}


@pytest.fixture
def world() -> World:
    world = World(SPEC)
    world.verb("publish")
    world.converge()
    world.verb("start")
    world.converge()
    return world


def stuck(world: World, **consumer: object) -> Snapshot:
    """One message for `price`, of which its durable knows nothing."""
    snapshot = world.snapshot()
    assert snapshot.stream is not None
    consumers = dict(snapshot.consumers)
    consumers["d1_price"] = dataclasses.replace(consumers["d1_price"], moved=(7, 7), **consumer)  # type: ignore[arg-type]
    stream = StreamView(snapshot.stream.config, {PLACE: 1})
    return dataclasses.replace(snapshot, stream=stream, consumers=consumers)


def look(snapshot: Snapshot, before: dict[str, Suspicion], now: float) -> dict[str, Suspicion]:
    return suspicions(snapshot.stream, snapshot.consumers, before, now)


def planned(snapshot: Snapshot, found: dict[str, Suspicion], now: float) -> list[do.Action]:
    plan = make_plan(dataclasses.replace(snapshot, suspicions=found, now=now))
    return [action for action in plan.actions if isinstance(action, do.RedeliverStuck)]


def test_two_looks_that_are_far_enough_apart_are_needed(world: World) -> None:
    snapshot, first = stuck(world), world.now
    found = look(snapshot, NOTHING, first)
    assert found == {"d1_price": Suspicion((7, 7), first, 1)}
    assert not planned(snapshot, found, first)
    found = look(snapshot, found, first + SURE_S / 2)
    assert not planned(snapshot, found, first + SURE_S / 2)
    found = look(snapshot, found, first + SURE_S)
    (action,) = planned(snapshot, found, first + SURE_S)
    assert isinstance(action, do.RedeliverStuck)
    assert (action.durable, action.moved, action.stored) == ("d1_price", (7, 7), 1)
    assert [item.split(".")[3:] for item in action.filters] == [["d1", "price", "0"]]


@pytest.mark.parametrize("moved", [(8, 7), (8, 8), (0, 0)])
def test_a_durable_that_moved_is_suspected_anew(world: World, moved: tuple[int, int]) -> None:
    snapshot = stuck(world)
    found = look(snapshot, NOTHING, 0.0)
    view = dataclasses.replace(snapshot.consumers["d1_price"], moved=moved)
    later = dataclasses.replace(snapshot, consumers={**snapshot.consumers, "d1_price": view})
    assert look(later, found, SURE_S)["d1_price"].since == SURE_S


@pytest.mark.parametrize("busy", [{"pending": 1}, {"in_flight": 1}, {"paused": True}])
def test_one_that_has_something_to_do_or_is_paused_is_not_suspected(world: World, busy: dict[str, object]) -> None:
    assert not look(stuck(world, **busy), look(stuck(world), NOTHING, 0.0), SURE_S)


def test_nothing_is_suspected_where_nothing_is_stored(world: World) -> None:
    snapshot = stuck(world)
    assert snapshot.stream is not None
    for counts in ({}, {("d1", "order", 0): 0}, {("d2", "price", 0): 3}, {("d1", "_barrier", 0): 1}):
        stream = dataclasses.replace(snapshot.stream, counts=counts)
        assert not suspicions(stream, snapshot.consumers, NOTHING, 0.0)
    assert make_plan(world.snapshot()).recheck_s is None


def test_what_is_parked_in_any_slot_belongs_to_the_durable_that_reads_all(world: World) -> None:
    config = {"filter_subjects": ("hr.default.orders.p1.order.*", "hr.default.orders.d1.order.0")}
    stream = StreamView(
        {}, {("p1", "order", 5): 2, ("p1", "order", 0): 1, ("d1", "order", 0): 3, ("d1", "order", 1): 9}
    )
    assert suspicions(stream, {"d1_order": ConsumerView(config, paused=False)}, NOTHING, 0.0)["d1_order"].stored == 6


def test_a_durable_that_is_not_as_decided_is_left_to_its_repair(world: World) -> None:
    snapshot = stuck(world)
    found = {"d1_price": Suspicion((7, 7), world.now - SURE_S, 1)}
    other = dataclasses.replace(
        snapshot.consumers["d1_price"], config={**snapshot.consumers["d1_price"].config, "x": 1}
    )
    assert not planned(
        dataclasses.replace(snapshot, consumers={**snapshot.consumers, "d1_price": other}), found, world.now
    )
    assert planned(snapshot, found, world.now)


def test_the_next_look_comes_when_it_would_be_sure(world: World) -> None:
    snapshot = stuck(world)
    plan = make_plan(dataclasses.replace(snapshot, suspicions={"d1_price": Suspicion((7, 7), world.now - 2, 1)}))
    assert plan.recheck_s is not None
    assert SURE_S - 2 < plan.recheck_s < SURE_S - 1.5
