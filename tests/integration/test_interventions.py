"""Suspend and resume, scale, cancel, queued verbs, and the choice of a drain too long, on a real broker."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.api.message.v1 import message_pb2
from headrace.client import AsyncClient
from headrace.client.intervention_calls import DEAD_LETTER, MOVE, WAIT
from headrace.model import subjects
from headrace.model.errors import Cancelled, DeadlineExceeded, InvalidInput, WrongState
from headrace.wire.envelope import decode_dead_letter, decode_envelope
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import OrchestratorRig, chain, orchestrator_rig, published

FLOW = "orders"
SUSPENDED = flow_pb2.FLOW_STATE_SUSPENDED


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def running(rig: OrchestratorRig, client: AsyncClient, *steps: str) -> None:
    await published(rig, client, FLOW, chain(*(steps or ("order", "price"))))
    await client.start(FLOW)


async def injected(client: AsyncClient, count: int, start: int = 0) -> None:
    await asyncio.gather(*(client.inject(FLOW, b"{}", request_id=f"m{n}") for n in range(start, start + count)))


async def waiting(rig: OrchestratorRig) -> int:
    return sum((await rig.counts(FLOW)).values())


async def dead_letters(rig: OrchestratorRig) -> list[message_pb2.DeadLetter]:
    letters: list[message_pb2.DeadLetter] = []
    sequence = 1
    while True:
        found = await rig.assets.next_message(
            subjects.dead_letter_stream("default", "orders"), subjects.dead_letter_filter("default", "orders"), sequence
        )
        if found is None:
            return letters
        letters.append(decode_dead_letter(found.data))
        sequence = found.sequence + 1


async def test_a_suspended_flow_keeps_and_takes_messages_and_goes_on_with_the_same_deployment(
    rig: OrchestratorRig,
) -> None:
    async with rig.client() as client:
        await running(rig, client)
        before = (await client.list_deployments(FLOW))[0]
        result = await client.suspend(FLOW, max_time_s=3600)
        assert "for 1 h and until 1000 wait" in result.message
        await injected(client, 20)
        status = await client.get_status(FLOW)
        assert status.state == SUSPENDED
        assert (status.suspension.kept, status.suspension.max_messages) == (20, 1000)
        assert not status.problems
        assert not rig.agent.handled
        with pytest.raises(WrongState, match="SUSPENDED: cannot suspend"):
            await client.suspend(FLOW)
        with pytest.raises(WrongState, match="SUSPENDED: cannot restart") as refused:
            await client.restart(FLOW)
        assert "headrace flow resume orders" in refused.value.next_step
        await client.resume(FLOW)
        await eventually(lambda: len(rig.agent.handled) == 20)
        assert {deployment for deployment, *_ in rig.agent.handled} == {1}
        after = await client.list_deployments(FLOW)
        assert [item.number for item in after] == [1]
        assert list(after[0].pins) == list(before.pins)
        assert len(rig.agent.started) == 2


async def test_limits_of_a_suspension_refuse_new_messages_and_keep_the_others(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.suspend(FLOW, max_messages=5)
        await injected(client, 6)

        async def refused() -> bool:
            status = await client.get_status(FLOW)
            return status.suspension.limit_reached == "COUNT" and not status.ingress_owner

        await eventually(refused)
        route, _ = await rig.stores.route(FLOW)
        assert route is not None
        assert route.refuses == "SUSPEND_LIMIT"
        with pytest.raises(WrongState, match="as many messages wait as it may keep"):
            await client.inject(FLOW, b"{}")
        problem = (await client.get_status(FLOW)).problems[0]
        assert "new messages are refused, 6 are kept. Go on: headrace flow resume orders" in problem
        await client.resume(FLOW)
        await eventually(lambda: len(rig.agent.handled) == 6)
        await client.inject(FLOW, b"{}")
        await eventually(lambda: len(rig.agent.handled) == 7)


async def test_a_suspension_ends_to_take_messages_after_its_time(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.suspend(FLOW, max_time_s=0.5)
        await injected(client, 3)

        async def over() -> bool:
            return (await client.get_status(FLOW)).suspension.limit_reached == "TIME"

        await eventually(over)
        with pytest.raises(WrongState, match="time limit"):
            await client.inject(FLOW, b"{}")
        await client.stop(FLOW)  # from SUSPENDED: what was kept is worked off
        assert len(rig.agent.handled) == 3


async def test_a_suspended_flow_can_be_dropped_and_says_how_many(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.suspend(FLOW)
        await injected(client, 7)
        result = await client.stop(FLOW, drop=True)
        assert result.dropped == 7
        assert not rig.agent.handled


async def test_a_suspend_survives_a_killed_orchestrator(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.begin_suspend(FLOW)
        await rig.kill()
        await rig.restart()

        async def suspended() -> bool:
            return (await client.get_flow(FLOW)).state == SUSPENDED

        await eventually(suspended, within_s=20)
        await injected(client, 3)
        await client.resume(FLOW)
        await eventually(lambda: len(rig.agent.handled) == 3)


async def test_a_drain_past_its_limit_is_dead_lettered_by_choice(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await injected(client, 250)
        with pytest.raises(DeadlineExceeded, match="still drains"):
            await client.stop(FLOW, timeout_s=0.5)

        async def asks() -> list[str]:
            return list((await client.get_status(FLOW)).problems)

        problem = (await eventually(asks))[0]
        assert "limit 0.5 s" in problem
        assert "headrace flow drain-choice orders --deployment 1 wait" in problem
        assert "drain-choice orders --deployment 1 dead-letter" in problem
        assert "move" not in problem  # nothing runs that could take it
        with pytest.raises(WrongState, match="no running deployment"):
            await client.resolve_drain(FLOW, 1, MOVE)
        waited = await client.resolve_drain(FLOW, 1, WAIT, timeout_s=60)
        assert "drains on for another 60 s" in waited.message
        assert not (await client.get_status(FLOW)).problems
        result = await client.resolve_drain(FLOW, 1, DEAD_LETTER)
        assert (result.dead_lettered, result.moved) == (250, 0)
        letters = await dead_letters(rig)
        assert len({letter.original.id for letter in letters}) == len(letters) == 250
        pins = {pin.step: pin.digest for pin in (await client.list_deployments(FLOW))[0].pins}
        assert dict(letters[0].pins) == pins
        assert {(letter.reason, letter.step, letter.deployment) for letter in letters} == {("DRAIN_LIMIT", "order", 1)}
        assert letters[0].revision == pins["order"]

        async def stopped() -> bool:
            return (await client.get_flow(FLOW)).state == flow_pb2.FLOW_STATE_STOPPED

        await eventually(stopped)
        assert await waiting(rig) == 0


async def test_what_waits_is_moved_to_the_running_deployment_once(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await injected(client, 120)
        await client.restart(FLOW)
        result = await client.resolve_drain(FLOW, 1, MOVE)
        assert (result.dead_lettered, result.moved) == (0, 120)
        rig.agent.keep.clear()
        await eventually(lambda: len(rig.agent.handled) == 120)
        assert {deployment for deployment, *_ in rig.agent.handled} == {2}
        envelopes = [decode_envelope(data) for *_, data in rig.agent.handled]
        assert len({envelope.id for envelope in envelopes}) == 120
        assert len({envelope.moved.id for envelope in envelopes}) == 120
        assert {envelope.moved.deployment for envelope in envelopes} == {1}
        assert len({envelope.incarnation for envelope in envelopes}) == 1
        assert envelopes[0].incarnation
        assert not await dead_letters(rig)


@pytest.mark.parametrize("choice", [MOVE, DEAD_LETTER])
async def test_a_kill_in_the_middle_of_a_choice_loses_and_doubles_nothing(rig: OrchestratorRig, choice: str) -> None:
    count = 600
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await injected(client, count)
        await client.restart(FLOW)
        operation = await client.begin_resolve_drain(FLOW, 1, choice, timeout_s=60)
        for left in (count - 50, count // 2):

            async def under_way(left: int = left) -> bool:
                counts = await rig.counts(FLOW)
                return sum(n for subject, n in counts.items() if ".d1." in subject) < left

            await eventually(under_way, within_s=20)
            await rig.kill()
            await rig.restart()
        result = await client.wait_operation(await client.get_operation(operation.name), timeout_s=60)
        assert result.moved + result.dead_lettered == count
        if choice == MOVE:
            rig.agent.keep.clear()
            await eventually(lambda: len(rig.agent.handled) >= count, within_s=20)
            origins = Counter(decode_envelope(data).moved.id for *_, data in rig.agent.handled)
        else:
            origins = Counter(letter.original.id for letter in await dead_letters(rig))
        assert len(origins) == count
        assert set(origins.values()) == {1}
        expected = 0 if choice == DEAD_LETTER else count
        assert len(rig.agent.handled) == expected


async def test_a_choice_is_refused_where_nothing_drains(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        with pytest.raises(WrongState, match="is ACTIVE: only one that drains"):
            await client.resolve_drain(FLOW, 1, DEAD_LETTER)


async def test_a_step_is_scaled_out_and_in_while_it_works(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        generation = (await client.list_deployments(FLOW))[0].generation
        result = await client.scale(FLOW, "order", 3)
        assert "has 3 instances" in result.message
        status = await client.get_status(FLOW)
        step = next(step for step in status.steps if step.step == "order")
        assert (step.replicas, len(step.instances)) == (3, 3)
        deployment = (await client.list_deployments(FLOW))[0]
        assert deployment.generation > generation
        assert {item.spec.plan_digest for item in rig.agent.of(FLOW, 1)} == {deployment.plan_digest}
        await injected(client, 50)
        await client.scale(FLOW, "order", 1)
        await injected(client, 50, start=50)
        await eventually(lambda: len(rig.agent.handled) == 100)
        assert sorted(rig.agent.stopped) == ["default.orders.d1.order.1", "default.orders.d1.order.2"]
        calls = [sidecar.calls for sidecar in rig.agent.of(FLOW, 1)]
        assert all(call[0] != "Drain" for own in calls for call in own)
        await client.restart(FLOW)  # takes the numbers along
        assert len(rig.agent.of(FLOW, 2)) == 2


@pytest.mark.parametrize("replicas", [0, 65])
async def test_scaling_past_a_limit_is_refused(rig: OrchestratorRig, replicas: int) -> None:
    async with rig.client() as client:
        await running(rig, client)
        with pytest.raises(InvalidInput, match="is not between 1 and 64"):
            await client.scale(FLOW, "price", replicas)
        with pytest.raises(InvalidInput, match="it has order, price"):
            await client.scale(FLOW, "prise", 2)


async def test_a_second_verb_is_refused_naming_the_first_or_waits_for_it(rig: OrchestratorRig) -> None:
    async with rig.client() as client, AsyncClient(rig.address, queue_s=20) as patient:
        await running(rig, client)
        rig.agent.hold.add("price")
        first = await client.begin_restart(FLOW)
        with pytest.raises(WrongState, match=f"busy with {first.name}"):
            await client.restart(FLOW)
        queued = [asyncio.create_task(patient.restart(FLOW)), asyncio.create_task(patient.scale(FLOW, "order", 2))]
        done, _ = await asyncio.wait(queued, timeout=0.5)
        assert not done
        rig.agent.hold.clear()
        rig.agent.release("price")
        results = await asyncio.gather(*queued)
        assert results[0].deployment == 3
        assert results[1].deployment in (2, 3)  # the two calls may arrive in either order
        assert (await client.get_flow(FLOW)).active_deployment == 3


async def test_a_cancelled_restart_is_undone_and_says_so(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.hold.add("price")
        operation = await client.begin_restart(FLOW)
        await eventually(lambda: len(rig.agent.of(FLOW, 2)) == 2)
        await client.cancel_operation(operation.name)
        with pytest.raises(Cancelled, match="deployment 2 is gone, deployment 1 ran on untouched"):
            await client.wait_operation(operation, timeout_s=20)
        assert not rig.agent.of(FLOW, 2)
        await injected(client, 1)
        await eventually(lambda: len(rig.agent.handled) == 1)
        assert rig.agent.handled[0][0] == 1


async def test_a_cancelled_start_leaves_the_flow_stopped(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        rig.agent.hold.add("price")
        await published(rig, client, FLOW, chain("order", "price"))
        operation = await client.begin_start(FLOW)
        await injected(client, 2)
        await client.cancel_operation(operation.name)
        with pytest.raises(Cancelled, match="the flow is STOPPED, 2 parked messages are kept"):
            await client.wait_operation(operation, timeout_s=20)


async def test_what_cannot_be_undone_is_not_cancelled_and_says_why(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await injected(client, 1)
        operation = await client.begin_stop(FLOW)
        with pytest.raises(WrongState, match="a drain cannot be undone"):
            await client.cancel_operation(operation.name)
        rig.agent.keep.clear()
        await client.wait_operation(operation, timeout_s=20)
        await client.cancel_operation(operation.name)  # over: nothing to do
