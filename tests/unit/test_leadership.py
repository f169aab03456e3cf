"""Taking over, repairing what a leader of the past left, and what the history says: pure decisions."""

from __future__ import annotations

import dataclasses

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.model.ingress_owner import NOBODY, IngressOwner
from services.agent.domain.instances import GenerationFence
from services.orchestrator.domain.actions import (
    EnsureStream,
    MoveStrays,
    RecordHistory,
    SetState,
    StartInstance,
    StopInstance,
    UpdateFlow,
)
from services.orchestrator.domain.assets import wanted_stream
from services.orchestrator.domain.documents import FlowDocument, OperationIntent, change, decode, encode
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.history import MAX_WAITING, noted
from services.orchestrator.domain.ingress_repair import is_switched
from services.orchestrator.domain.leadership import GENERATIONS_PER_EPOCH, LeaseTerms, epoch_of, generation_of
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.snapshot import InstanceView, Snapshot, StreamView
from services.orchestrator.domain.taking_over import stop_orphans
from tests.support.planned_world import World

SPEC = FlowSpec("realtime", (StepSpec("hook", "hook", to=("work",)), StepSpec("work", "work")))


def running_world() -> World:
    """A flow that runs, decided by a leader of whom nobody counts the epochs."""
    world = World(SPEC)
    world.verb("publish")
    world.converge()
    world.verb("start")
    world.converge()
    assert world.flow.state == FlowState.RUNNING
    return world


def on_a_cluster(world: World, said: IngressOwner) -> Snapshot:
    snapshot = world.snapshot()
    assert snapshot.stream is not None
    return dataclasses.replace(snapshot, stream_copies=3, stream=dataclasses.replace(snapshot.stream, owner=said))


def seen_by(world: World, epoch: int) -> Snapshot:
    return dataclasses.replace(world.snapshot(), epoch=epoch)


@given(st.integers(0, 10**7), st.integers(1, 1000))
def test_a_new_leaders_generation_is_above_all_earlier_ones(generation: int, epoch: int) -> None:
    raised = generation_of(generation, epoch)
    assert raised > generation
    assert epoch_of(raised) >= epoch


def test_a_holder_gives_up_before_the_broker_forgets() -> None:
    terms = LeaseTerms()
    assert terms.valid_until(100.0) < 100.0 + terms.ttl
    assert terms.renew * 2 < terms.ttl - terms.margin


def test_a_new_leader_marks_document_states_and_fences_before_it_decides_anything() -> None:
    world = running_world()
    first = make_plan(seen_by(world, 7)).actions
    assert [type(action) for action in first] == [UpdateFlow]
    world.apply(seen_by(world, 7), first[0])
    assert world.flow.leader_epoch == 7

    second = make_plan(seen_by(world, 7)).actions
    assert [type(action) for action in second] == [SetState]
    world.apply(seen_by(world, 7), second[0])
    assert world.states[1][0].generation == 7 * GENERATIONS_PER_EPOCH

    third = make_plan(seen_by(world, 7)).actions
    raised = [action for action in third if isinstance(action, StartInstance)]
    assert {action.instance.name for action in raised} == set(world.instances)
    assert {action.generation for action in raised} == {7 * GENERATIONS_PER_EPOCH}


def test_a_leader_of_the_past_decides_nothing() -> None:
    world = running_world()
    world.flow = msgspec.structs.replace(world.flow, leader_epoch=8)
    world.flow = change(world.flow, ingress="", ingress_confirmed=False)
    assert make_plan(seen_by(world, 7)).actions == ()


def test_an_ingress_that_somebody_switched_is_counted_then_put_right() -> None:
    world = running_world()
    assert make_plan(world.snapshot()).actions == ()
    assert world.stream is not None
    transform = world.stream["subject_transform"]
    assert isinstance(transform, dict)
    world.stream["subject_transform"] = {**transform, "dest": str(transform["dest"]).replace(".d1.", ".d9.")}
    (counted,) = make_plan(world.snapshot()).actions
    assert isinstance(counted, UpdateFlow)
    assert (counted.document.ingress_repairs, counted.document.ingress_confirmed) == (1, False)
    world.apply(world.snapshot(), counted)
    assert [type(action) for action in make_plan(world.snapshot()).actions] == [EnsureStream]
    world.converge()
    assert world.flow.ingress_confirmed
    assert world.flow.ingress_repairs == 1


def test_on_a_cluster_the_stream_itself_says_who_the_owner_is() -> None:
    """No transform there; a stream that was made anew says nothing, and is told again."""
    seen = on_a_cluster(running_world(), IngressOwner("d1", 1))
    wanted = wanted_stream(seen)
    assert wanted is not None
    assert "subject_transform" not in wanted
    assert wanted["subjects"][0] == "hr.default.orders.in._owner.*"  # type: ignore[index]
    assert not is_switched(seen)
    assert is_switched(on_a_cluster(running_world(), NOBODY))


def test_on_a_cluster_nothing_has_drained_in_a_view_from_before_the_switch() -> None:
    world = running_world()
    world.draft()
    world.verb("restart")
    closed = None
    while closed is None:
        world.settle()
        snapshot = world.snapshot()
        actions = make_plan(snapshot).actions
        closed = next((action for action in actions if getattr(action, "why", "") == "d1 is drained"), None)
        for action in actions if closed is None else ():
            world.apply(snapshot, action)
    assert snapshot.stream is not None
    behind = msgspec.structs.replace(snapshot.flow, ingress_sequence=snapshot.stream.last_sequence + 1)
    actions = make_plan(dataclasses.replace(snapshot, flow=behind)).actions
    assert not any(isinstance(action, UpdateFlow) for action in actions)


def test_a_switch_that_was_decided_is_no_repair() -> None:
    world = running_world()
    world.draft()
    world.verb("restart")
    world.converge()
    world.verb("stop")
    world.converge()
    assert world.flow.ingress_repairs == 0


def test_only_messages_of_owners_nobody_works_for_are_strays() -> None:
    world = running_world()
    snapshot = world.snapshot()
    assert snapshot.stream is not None
    counts = {("d1", "work", 0): 3, ("p1", "hook", 0): 1, ("d9", "hook", 0): 2, ("in", "hook", 0): 1}
    counts |= {("d9", "_barrier", 0): 1}
    strange = dataclasses.replace(snapshot, stream=StreamView(snapshot.stream.config, counts))
    moved = [action for action in make_plan(strange).actions if isinstance(action, MoveStrays)]
    assert moved == [MoveStrays((("d9", "hook", 0), ("in", "hook", 0)))]


def test_the_history_of_a_flow_is_read_off_its_documents() -> None:
    created = noted(None, FlowDocument("orders", "realtime", 1.0, draft=SPEC), "ann", 1.0)
    intent = OperationIntent("start-1", "start", version=1, deployment=1)
    starting = noted(
        created, change(created, operation=intent, target=1, live=(1,), state=FlowState.STARTING), "bob", 2.0
    )
    again = noted(starting, change(starting, has_stream=True), "x", 2.5)
    running = noted(again, change(again, active=1, active_version=1, target=0, state=FlowState.RUNNING), "o", 3.0)
    stop = OperationIntent("stop-1", "stop", version=1, deployment=1)
    stopping = noted(running, change(running, operation=stop, stop_mode="DROP", state=FlowState.STOPPING), "eve", 4.0)
    stopped = noted(stopping, change(stopping, live=(), active=0, state=FlowState.STOPPED), "o", 5.0)
    said = [(entry.id, entry.who, entry.what, entry.detail, entry.operation) for entry in stopped.history]
    assert said == [
        ("orders.1", "ann", "create", "", ""),
        ("orders.2", "bob", "start", "", "operations/start-1"),
        ("orders.3", "o", "running", "", ""),
        ("orders.4", "eve", "stop", "DROP", "operations/stop-1"),
        ("orders.5", "o", "stopped", "", ""),
        ("orders.6", "o", "retired", "", ""),
    ]
    assert decode(encode(stopped), FlowDocument) == stopped


def test_a_history_that_cannot_be_stored_does_not_grow_for_ever() -> None:
    document = FlowDocument("orders", "realtime", 1.0, draft=SPEC)
    for number in range(MAX_WAITING + 50):
        edited = msgspec.structs.replace(SPEC, max_waiting=number + 1)
        document = noted(document, change(document, draft=edited), "ann", float(number))
    assert len(document.history) == MAX_WAITING
    assert document.history_next == document.history[-1].number + 1


def test_entries_are_stored_when_nothing_else_changes_the_document() -> None:
    world = running_world()
    world.flow = noted(world.flow, change(world.flow, draft=SPEC, edit=99), "ann", 1.0)
    assert make_plan(world.snapshot()).actions == (RecordHistory(),)


def test_the_history_says_which_code_a_draft_names_and_which_version_was_deleted() -> None:
    first = FlowDocument("orders", "realtime", 1.0, draft=SPEC, latest_version=2)
    step = SPEC.steps[-1]
    other = msgspec.structs.replace(SPEC, steps=(*SPEC.steps[:-1], msgspec.structs.replace(step, component="work@3")))
    drafted = noted(first, change(first, draft=other), "ann", 2.0)
    deleted = noted(drafted, change(drafted, deleted_versions=(1,)), "bob", 3.0)
    said = [(entry.what, entry.who, entry.version, entry.detail) for entry in deleted.history]
    assert said == [
        ("draft", "ann", 0, f"{step.name}=work@3 (was {step.component})"),
        ("delete-version", "bob", 1, ""),
    ]


async def test_an_orphan_is_stopped_though_its_agent_has_seen_a_higher_generation() -> None:
    """A start that was refused for another reason raised the fence of an instance that runs with a lower one."""
    world = running_world()
    snapshot = dataclasses.replace(world.snapshot(), epoch=2)
    orphan = InstanceView("default.orders.d0.work.0", 0, "work", 0, up=True, generation=1_000_007)
    late = dataclasses.replace(snapshot, instances={**snapshot.instances, orphan.name: orphan})
    stops = stop_orphans(late)
    assert [stop.name for stop in stops if isinstance(stop, StopInstance)] == [orphan.name]
    fence = GenerationFence()
    fence.pass_through(orphan.name, 1_000_009)
    for stop in stops:
        assert isinstance(stop, StopInstance)
        fence.pass_through(stop.name, stop.generation)
    stuck = dataclasses.replace(orphan, stopping=True)  # whoever began to stop it may have given up
    assert stop_orphans(dataclasses.replace(late, instances={orphan.name: stuck}))
