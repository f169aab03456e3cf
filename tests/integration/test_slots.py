"""Keyed steps on a real broker: slots, owners, hand-over, switches, parking; instances are scripted."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.model import subjects
from headrace.model.errors import WrongState
from headrace.model.flow_spec import FlowSpec
from headrace.model.slots import slot_of
from headrace.wire.envelope import decode_envelope
from headrace.wire.flow import flow_spec_to_proto
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import OrchestratorRig, chain, orchestrator_rig, published

FLOW = "orders"
STREAM = "hr_default_orders"
SLOTS = 4
# Generous: a machine that is busy with other tests is slow.
LIMIT_S = 40.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        running.agent.keyed |= {"order"}
        yield running


def keyed_spec(key: str = "body:/customer", slots: int = SLOTS, **fields: Any) -> FlowSpec:
    """One step, which is trigger and effect: what its instances handle is what was stored, in its order."""
    spec = chain("order")
    return msgspec.structs.replace(
        spec, steps=tuple(msgspec.structs.replace(step, key=key, slots=slots, **fields) for step in spec.steps)
    )


async def running(rig: OrchestratorRig, client: AsyncClient, spec: FlowSpec | None = None) -> None:
    await published(rig, client, FLOW, spec or keyed_spec())
    await client.start(FLOW)


async def inject(client: AsyncClient, count: int, start: int = 0) -> None:
    """Numbers for eight customers, one after the other."""
    for number in range(start, start + count):
        body = b'{"customer": "c%d", "n": %d}' % (number % 8, number)
        await client.inject(FLOW, body, request_id=f"m{number}")


def handled(rig: OrchestratorRig) -> dict[str, list[int]]:
    """Numbers in the order in which they were handled, by customer; each from the slot of its key."""
    found: dict[str, list[int]] = {}
    for _, _, subject, data in rig.agent.handled:
        body = msgspec.json.decode(decode_envelope(data).body)
        assert subjects.parse_data_subject(subject).slot == slot_of(body["customer"], SLOTS)
        found.setdefault(body["customer"], []).append(body["n"])
    return found


def in_order(rig: OrchestratorRig, count: int) -> None:
    found = handled(rig)
    assert sum(map(len, found.values())) == count
    assert all(numbers == sorted(set(numbers)) for numbers in found.values())


async def step_status(client: AsyncClient) -> flow_pb2.StepStatus:
    return (await client.get_status(FLOW)).steps[0]


async def consumers(rig: OrchestratorRig) -> dict[str, bool]:
    return {info["name"]: bool(info.get("paused")) for info in await rig.assets.consumers(STREAM)}


async def test_a_keyed_step_has_a_durable_for_each_slot_and_messages_find_theirs(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        (lease,) = {(name[: len("d1_order_s")], name.rpartition("_g")[2]) for name in await consumers(rig)}
        assert sorted(await consumers(rig)) == [f"d1_order_s{slot}_g{lease[1]}" for slot in range(SLOTS)]
        await inject(client, 40)
        await eventually(lambda: len(rig.agent.handled) == 40, within_s=LIMIT_S)
        in_order(rig, 40)
        status = await step_status(client)
        assert {(slot.slot, slot.owner, slot.waits_for) for slot in status.slots} == {
            (slot, "default.orders.d1.order.0", "") for slot in range(SLOTS)
        }


async def test_streams_take_batches_and_rollups_and_those_that_do_not_are_repaired(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client, chain("order", "price"))
        config = await rig.stream_config(FLOW)
        assert (config["allow_atomic"], config["allow_rollup_hdrs"]) == (True, True)
        assert "hr.default.orders.c1.>" in config["subjects"]  # type: ignore[operator]
        await rig.kill()
        old = {key: value for key, value in config.items() if key not in ("allow_atomic", "allow_rollup_hdrs")}
        old["subjects"] = [item for item in config["subjects"] if ".c1." not in item]  # type: ignore[attr-defined]
        changed = (await rig.assets.request(f"STREAM.UPDATE.{STREAM}", old))["config"]
        assert not changed.get("allow_atomic")
        await rig.restart()

        async def repaired() -> bool:
            now = await rig.stream_config(FLOW)
            return all(now.get(key) == config[key] for key in ("allow_atomic", "allow_rollup_hdrs", "subjects"))

        await eventually(repaired, within_s=LIMIT_S)


async def test_slots_follow_the_scale_and_their_names_are_never_used_again(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        used = set(await consumers(rig))
        result = await client.scale(FLOW, "order", 4)
        assert result.message.endswith("has 4 instances; 3 of 4 slots were handed over")
        owners = Counter(slot.owner for slot in (await step_status(client)).slots)
        assert sorted(owners.values()) == [1, 1, 1, 1]
        assert len(await consumers(rig)) == SLOTS
        used |= set(await consumers(rig))
        await inject(client, 40)
        await eventually(lambda: len(rig.agent.handled) == 40, within_s=LIMIT_S)
        with pytest.raises(WrongState, match="of 5 instances 1 would have nothing to do") as refused:
            await client.scale(FLOW, "order", 5)
        assert refused.value.reason == "TOO_FEW_SLOTS"
        result = await client.scale(FLOW, "order", 1)
        assert "3 of 4 slots were handed over" in result.message
        await inject(client, 40, 40)
        await eventually(lambda: len(rig.agent.handled) == 80, within_s=LIMIT_S)
        in_order(rig, 80)
        again = set(await consumers(rig)) & used
        assert len(again) == 1  # the slot that never moved
        used |= set(await consumers(rig))
        assert len(used) == SLOTS + 3 + 3


async def test_a_slot_waits_for_its_former_owner_also_when_the_orchestrator_dies(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.clutch.add("order")
        operation = await client.begin_scale(FLOW, "order", 2)

        async def waits() -> bool:
            slots = (await step_status(client)).slots
            return [slot.waits_for for slot in slots].count("former owner") == 2

        await eventually(waits, within_s=LIMIT_S)
        await inject(client, 24)
        await rig.kill()
        await rig.restart()
        await eventually(waits, within_s=LIMIT_S)
        before = await consumers(rig)
        assert len(before) == SLOTS
        await eventually(lambda: {slot_of(customer, SLOTS) for customer in handled(rig)} >= {0, 1}, within_s=LIMIT_S)
        rig.agent.let_go("order")
        result = await client.wait_operation(operation, timeout_s=30)
        assert "2 of 4 slots were handed over" in result.message
        await eventually(lambda: len(rig.agent.handled) == 24, within_s=LIMIT_S)
        in_order(rig, 24)
        assert len(set(before) & set(await consumers(rig))) == 2


async def test_a_restarted_agent_leaves_slots_with_their_replicas(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client, keyed_spec(replicas=2))
        before = [(slot.owner, slot.generation) for slot in (await step_status(client)).slots]
        await rig.agent.lose_all()
        await inject(client, 16)
        await eventually(lambda: len(rig.agent.handled) == 16, within_s=LIMIT_S)
        in_order(rig, 16)
        assert [(slot.owner, slot.generation) for slot in (await step_status(client)).slots] == before


async def test_cursors_are_not_waiting_and_go_with_their_deployment(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        cursor = subjects.cursor_subject("default", FLOW, 1, "order", 2)
        await rig.assets.publish(cursor, b"{}", {"Nats-Rollup": "sub"})
        status = await client.get_status(FLOW)
        assert status.deployments[0].waiting == 0
        assert (await client.suspend(FLOW)).message.startswith("suspended; 0 messages are kept")
        await client.resume(FLOW)
        await client.restart(FLOW)
        await eventually(lambda: _numbers(client, [2]), within_s=LIMIT_S)
        assert cursor not in await rig.counts(FLOW)
        assert "hr.default.orders.c1.>" not in (await rig.stream_config(FLOW))["subjects"]  # type: ignore[operator]
        await inject(client, 8)
        await eventually(lambda: len(rig.agent.handled) == 8, within_s=LIMIT_S)


async def _numbers(client: AsyncClient, wanted: list[int]) -> bool:
    status = await client.get_status(FLOW)
    return [item.deployment.number for item in status.deployments] == wanted


async def test_a_slot_of_the_new_deployment_waits_for_that_slot_of_the_old_one(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await inject(client, 8)  # given back again and again by the old one
        await client.restart(FLOW)
        await inject(client, 32, 8)
        waits = {slot.slot: slot.waits_for for slot in (await step_status(client)).slots}
        busy = {slot_of(f"c{number}", SLOTS) for number in range(8)}
        assert waits == {slot: "d1" if slot in busy else "" for slot in range(SLOTS)}
        assert not rig.agent.handled
        rig.agent.keep.discard("order")
        await eventually(lambda: len(rig.agent.handled) == 40, within_s=LIMIT_S)
        in_order(rig, 40)
        assert Counter(deployment for deployment, *_ in rig.agent.handled) == {1: 8, 2: 32}


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (keyed_spec("header:customer"), "keyed by header:customer in 4 slots, was keyed by body:/customer in 4 slots"),
        (keyed_spec(slots=8), "in 8 slots, was keyed by body:/customer in 4 slots"),
        (chain("order"), "step 'order' is not keyed, was keyed by body:/customer"),
    ],
)
async def test_other_slots_need_a_restart_which_parks_and_handles_all(
    rig: OrchestratorRig, other: FlowSpec, said: str
) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.update_draft(FLOW, flow_spec_to_proto(other))
        with pytest.raises(WrongState, match=said) as refused:
            await client.publish(FLOW)
        assert refused.value.reason == "NEEDS_RESTART"
        rig.agent.keep.add("order")
        await inject(client, 8)
        if not other.steps[0].keyed:
            rig.agent.keyed.discard("order")
        operation = await client.begin_publish(FLOW, strategy="RESTART")

        async def parked() -> bool:
            return ".p" in str((await rig.stream_config(FLOW)).get("subject_transform"))

        await eventually(parked, within_s=LIMIT_S)
        await inject(client, 16, 8)
        rig.agent.keep.discard("order")
        await client.wait_operation(operation, timeout_s=30)
        await inject(client, 8, 24)
        await eventually(lambda: len(rig.agent.handled) == 32, within_s=LIMIT_S)
        assert Counter(deployment for deployment, *_ in rig.agent.handled) == {1: 8, 2: 24}


async def test_a_suspended_keyed_flow_keeps_its_slots(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.suspend(FLOW)
        assert all((await consumers(rig)).values())
        await inject(client, 16)
        await client.resume(FLOW)
        await eventually(lambda: len(rig.agent.handled) == 16, within_s=LIMIT_S)
        in_order(rig, 16)


async def test_what_is_moved_goes_to_the_slot_of_its_key(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await inject(client, 16)
        await client.restart(FLOW)
        operation = await client.begin_resolve_drain(FLOW, 1, "MOVE", timeout_s=60)
        rig.agent.keep.discard("order")
        await client.wait_operation(operation, timeout_s=60)
        await eventually(lambda: len(rig.agent.handled) == 16, within_s=LIMIT_S)
        in_order(rig, 16)
