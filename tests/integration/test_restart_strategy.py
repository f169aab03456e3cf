"""RESTART and strict order: what waits for the old deployment, what is parked, what becomes of it after a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.client.operations import metadata_of
from headrace.model.deployment import DeploymentPhase
from headrace.model.errors import HeadraceError, InvalidInput, WrongState
from headrace.model.flow_spec import FlowSpec
from headrace.wire.flow import flow_spec_to_proto
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import WORK, OrchestratorRig, chain, orchestrator_rig
from tests.support.rollouts import FLOW, digest_of, ingress_is, ingress_of, phase_is, running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def test_restart_strategy_parks_drains_then_starts(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        new = await rig.push(WORK)
        rig.agent.keep.add("order")
        await client.inject(FLOW, b"{}", request_id="old")
        operation = await client.begin_restart(FLOW, strategy="RESTART")
        await eventually(lambda: ingress_is(rig, "p2"))
        await client.inject(FLOW, b"{}", request_id="parked")
        await eventually(lambda: phase_is(rig, 1, DeploymentPhase.DRAINING))
        seen = metadata_of(await client.get_operation(operation.name))
        assert dict(seen.steps) == {"order": "waits for deployment 1", "price": "waits for deployment 1"}
        assert [line.split(":")[0] for line in seen.draining] == ["deployment 1"]
        assert seen.difference.steps[0].new_digest == new
        assert rig.agent.of(FLOW, 2) == []
        rig.agent.keep.clear()
        result = await client.wait_operation(operation, timeout_s=20)
        assert result.deployment == 2
        assert rig.agent.of(FLOW, 1) == []
        await eventually(lambda: len(rig.agent.handled) == 2)
        assert [item[:3] for item in rig.agent.handled] == [
            (1, "order", f"hr.default.{FLOW}.d1.order.0"),
            (2, "order", f"hr.default.{FLOW}.p2.order.0"),
        ]
        await client.inject(FLOW, b"{}", request_id="new")
        await eventually(lambda: len(rig.agent.handled) == 3)
        assert rig.agent.handled[2][2] == f"hr.default.{FLOW}.d2.order.0"


async def test_a_restart_that_fails_for_good_keeps_what_is_parked_for_a_persons_choice(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        old = await digest_of(client)
        await rig.push(WORK)
        rig.agent.fail.add("price")
        rig.agent.keep.add("order")
        await client.inject(FLOW, b"{}", request_id="old")
        operation = await client.begin_restart(FLOW, strategy="RESTART")
        await eventually(lambda: ingress_is(rig, "p2"))
        await client.inject(FLOW, b"{}", request_id="parked")
        rig.agent.keep.clear()
        with pytest.raises(HeadraceError) as failure:
            await client.wait_operation(operation, timeout_s=20)
        for expected in ("step 'price'", "No module x", "1 parked messages are kept"):
            assert expected in str(failure.value)
        status = await client.get_status(FLOW)
        assert status.state == flow_pb2.FLOW_STATE_STOPPED
        assert any("1 parked messages wait" in problem for problem in status.problems)
        rig.agent.fail.clear()
        back = await client.rollback(FLOW, 1)
        assert (back.deployment, await digest_of(client)) == (3, old)
        await eventually(lambda: len(rig.agent.handled) == 2)
        assert rig.agent.handled[1][:3] == (3, "order", f"hr.default.{FLOW}.p2.order.0")


async def test_what_is_parked_for_a_failed_restart_can_be_dead_lettered(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await rig.push(WORK)
        rig.agent.fail.add("price")
        operation = await client.begin_restart(FLOW, strategy="RESTART")
        await eventually(lambda: ingress_is(rig, "p2"))
        for number in range(3):
            await client.inject(FLOW, b"{}", request_id=f"parked {number}")
        with pytest.raises(HeadraceError, match="3 parked messages are kept"):
            await client.wait_operation(operation, timeout_s=20)
        with pytest.raises(WrongState, match="nothing of flow 'orders' runs"):
            await client.resolve_drain(FLOW, 2, "MOVE")
        assert "kept for the next start" in (await client.resolve_drain(FLOW, 2, "WAIT")).message
        [problem] = [text for text in (await client.get_status(FLOW)).problems if "parked" in text]
        assert "drain-choice orders --deployment 2 dead-letter" in problem
        result = await client.resolve_drain(FLOW, 2, "DEAD_LETTER")
        assert (result.dead_lettered, result.message) == (3, "3 parked messages dead-lettered")
        assert not await rig.counts(FLOW)
        status = await client.get_status(FLOW)
        assert not [text for text in status.problems if "parked" in text]
        letters = (await client.list_dead_letters(FLOW)).dead_letters
        assert {(letter.reason, letter.step, letter.deployment) for letter in letters} == {
            ("PARKED_GIVEN_UP", "order", 2)
        }
        assert len(letters) == 3
        rig.agent.fail.clear()
        await client.start(FLOW)
        await client.inject(FLOW, b"{}", request_id="new")
        await eventually(lambda: len(rig.agent.handled) == 1)
        entries, _ = await client.list_history(FLOW, limit=500)
        assert "strays-moved" not in {entry.what for entry in entries}
        assert ("drain-choice", "DEAD_LETTER", 2) in {(entry.what, entry.detail, entry.deployment) for entry in entries}


async def test_a_restart_whose_references_do_not_resolve_leaves_the_old_one_alone(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client, chain("order", "price"))
        await rig.push(WORK.replace("  work:", "  other:"))
        await client.inject(FLOW, b"{}", request_id="before")
        steps = chain("order", "price").steps
        named = FlowSpec("realtime", (steps[0], msgspec.structs.replace(steps[1], function="work")))
        await client.update_draft(FLOW, flow_spec_to_proto(named))
        with pytest.raises(InvalidInput, match="'work' is not a function"):
            await client.publish(FLOW, strategy="RESTART")
        assert await ingress_of(rig) == "d1"
        assert (await client.get_flow(FLOW)).latest_version == 1


async def test_a_changed_trigger_or_reply_mode_needs_restart(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        renamed = chain("hook", "price")
        await client.update_draft(FLOW, flow_spec_to_proto(msgspec.structs.replace(renamed, reply_timeout_s=5.0)))
        with pytest.raises(WrongState) as refusal:
            await client.publish(FLOW)
        assert refusal.value.reason == "NEEDS_RESTART"
        for expected in ("'hook'", "'order'", "replies to its callers", "--strategy restart"):
            assert expected in str(refusal.value)
        result = await client.publish(FLOW, strategy="RESTART")
        fields = {field.field: field.new_json for field in result.difference.fields}
        assert fields == {"trigger": '"hook"', "reply_timeout": '"5s"'}
        assert {step.step: step.change for step in result.difference.steps} == {"hook": "added", "order": "removed"}
        await client.inject(FLOW, b"{}")
        await eventually(lambda: [item[:2] for item in rig.agent.handled] == [(2, "hook")])
        with pytest.raises(WrongState, match="'order', was 'hook'"):
            await client.rollback(FLOW, 1)
        await client.rollback(FLOW, 1, strategy="RESTART")


async def test_strict_order_holds_the_new_trigger_until_the_old_deployment_has_drained(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await rig.push(WORK)
        rig.agent.keep.add("order")
        for number in range(3):
            await client.inject(FLOW, b"old", content_type="text/plain", request_id=f"old-{number}")
        operation = await client.begin_restart(FLOW, strict_order=True)
        await eventually(lambda: ingress_is(rig, "d2"))
        for number in range(3):
            await client.inject(FLOW, b"new", content_type="text/plain", request_id=f"new-{number}")
        await eventually(lambda: waits(client, operation))
        await rig.kill()
        await rig.restart()
        infos = {str(info["name"]): info for info in await rig.assets.consumers(f"hr_default_{FLOW}")}
        assert infos["d2_order"]["paused"]
        assert not infos["d1_order"].get("paused")
        rig.agent.keep.clear()
        await client.wait_operation(operation, timeout_s=20)
        await eventually(lambda: len(rig.agent.handled) == 6)
        assert [item[0] for item in rig.agent.handled] == [1, 1, 1, 2, 2, 2]


async def waits(client: AsyncClient, operation: Any) -> bool:
    seen = metadata_of(await client.get_operation(operation.name))
    return seen.steps.get("order") == "active, waits for deployment 1"


async def test_past_its_limit_a_strict_switch_says_what_it_waits_for_and_goes_on(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        rig.agent.keep.add("order")
        await client.inject(FLOW, b"{}", request_id="old")
        with pytest.raises(HeadraceError, match="deployment 1 of 'orders' still drains: 1 messages wait"):
            await client.restart(FLOW, strict_order=True, timeout_s=1.0)
        rig.agent.keep.clear()
        await client.inject(FLOW, b"{}", request_id="new")
        await eventually(lambda: [item[0] for item in rig.agent.handled] == [1, 2])
