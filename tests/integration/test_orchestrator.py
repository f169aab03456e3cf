"""The orchestrator process on a real broker and registry: start, stop, publish, failure, kill -9, repair."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.api.flow.v1 import flow_pb2
from headrace.client import AsyncClient
from headrace.model import bucket_names, subjects
from headrace.model.deployment import DeploymentPhase, plan_digest
from headrace.model.errors import AlreadyExists, Conflict, Exhausted, HeadraceError, InvalidInput, NotFound, WrongState
from headrace.model.flow_spec import FlowSpec, StepSpec
from headrace.model.route import Route
from headrace.wire.flow import flow_spec_to_proto
from services.orchestrator.domain.documents import decode, flow_key
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import HOOK, WORK, OrchestratorRig, chain, orchestrator_rig, published


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def state_of(client: AsyncClient, flow: str) -> str:
    return flow_pb2.FlowState.Name((await client.get_flow(flow)).state)


async def route_of(rig: OrchestratorRig, flow: str) -> Route:
    route, _ = await rig.stores.route(flow)
    assert route is not None
    return route


async def test_a_flow_starts_works_and_stops_drained(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-1", chain("order", "price", "check"))
        result = await client.start("orders-1")
        assert (result.version, result.deployment) == (1, 1)
        assert await state_of(client, "orders-1") == "FLOW_STATE_RUNNING"
        assert await route_of(rig, "orders-1") == Route("orders-1", "RUNNING", "order", 0.0, 1, 1, epoch=1)
        config = await rig.stream_config("orders-1")
        assert config["subject_transform"] == {
            "src": "hr.default.orders-1.in.*.*",
            "dest": "hr.default.orders-1.d1.{{wildcard(1)}}.{{wildcard(2)}}",
        }
        await client.inject("orders-1", b"{}", request_id="one")
        repeated = await client.inject("orders-1", b"{}", request_id="one")
        assert repeated.duplicate
        await eventually(lambda: len(rig.agent.handled) == 1)
        assert rig.agent.handled[0][:3] == (1, "order", "hr.default.orders-1.d1.order.0")
        pins = await rig.stores.pins.keys("*.orders-1.*")
        assert len(pins) == 2
        assert all(key.endswith(".orders-1.d1") for key in pins)
        deployment = (await client.list_deployments("orders-1"))[0]
        assert {"resolve", "assets", "prepare", "activate", "total"} <= set(deployment.start_ms)

        await client.stop("orders-1")
        assert await state_of(client, "orders-1") == "FLOW_STATE_STOPPED"
        assert rig.agent.sidecars == {}
        assert await rig.assets.consumers("hr_default_orders-1") == []
        assert (await route_of(rig, "orders-1")).state == "STOPPED"
        assert all(key.endswith(".orders-1.v1") for key in await rig.stores.pins.keys("*.orders-1.*"))
        with pytest.raises(WrongState, match="flow start orders-1"):
            await client.inject("orders-1", b"{}")


async def test_draining_waits_for_messages_and_drop_counts_them(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-2", chain("order", "price"))
        await client.start("orders-2")
        rig.agent.keep.add("order")
        for number in range(5):
            await client.inject("orders-2", b"{}", request_id=f"{number}")
        with pytest.raises(HeadraceError, match="5 messages wait"):
            await client.stop("orders-2", timeout_s=0.3)
        assert await state_of(client, "orders-2") == "FLOW_STATE_STOPPING"
        assert sum((await rig.counts("orders-2")).values()) == 5
        result = await client.stop("orders-2", drop=True)
        assert result.dropped == 5
        assert await state_of(client, "orders-2") == "FLOW_STATE_STOPPED"
        assert await rig.counts("orders-2") == {}


async def test_draining_goes_on_until_the_last_message_is_handled(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-3", chain("order", "price"))
        await client.start("orders-3")
        rig.agent.keep.add("order")
        for number in range(5):
            await client.inject("orders-3", b"{}", request_id=f"{number}")
        stopping = asyncio.ensure_future(client.stop("orders-3"))
        await eventually(lambda: phase_is(rig, "orders-3", 1, DeploymentPhase.DRAINING))
        rig.agent.keep.clear()
        await stopping
        assert len(rig.agent.handled) == 5
        assert await phase_is(rig, "orders-3", 1, DeploymentPhase.RETIRED)


async def phase_is(rig: OrchestratorRig, flow: str, deployment: int, phase: DeploymentPhase) -> bool:
    found = await rig.stores.state(flow, deployment)
    return found is not None and found[0].phase == phase


async def test_a_start_that_fails_names_step_cause_and_log_and_is_undone(rig: OrchestratorRig) -> None:
    rig.agent.fail.add("price")
    async with rig.client() as client:
        await published(rig, client, "orders-4", chain("order", "price"))
        with pytest.raises(HeadraceError) as failure:
            await client.start("orders-4")
        assert failure.value.reason == "COMPONENT_EXITED"
        for expected in ("step 'price'", "exited with status 1", "No module x"):
            assert expected in str(failure.value)
        assert await state_of(client, "orders-4") == "FLOW_STATE_STOPPED"
        assert rig.agent.sidecars == {}
        assert await rig.stores.pins.keys("*.orders-4.*") == []
        assert await rig.assets.consumers("hr_default_orders-4") == []
        rig.agent.fail.clear()
        assert (await client.start("orders-4")).deployment == 2


async def test_messages_parked_during_a_failed_start_reach_the_next_one(rig: OrchestratorRig) -> None:
    rig.agent.hold.add("price")
    async with rig.client() as client:
        await published(rig, client, "orders-5", chain("order", "price"))
        operation = await client.begin_start("orders-5", timeout_s=1.0)
        await eventually(lambda: ingress_is(rig, "orders-5", "p1"))
        await client.inject("orders-5", b"{}", request_id="parked")
        with pytest.raises(HeadraceError, match="1 parked messages are kept"):
            await client.wait_operation(operation, timeout_s=10)
        assert any("1 parked" in problem for problem in (await client.get_status("orders-5")).problems)
        rig.agent.hold.clear()
        await client.start("orders-5")
        await eventually(lambda: len(rig.agent.handled) == 1)
        assert rig.agent.handled[0][2] == "hr.default.orders-5.p1.order.0"


async def ingress_is(rig: OrchestratorRig, flow: str, owner: str) -> bool:
    config = await rig.assets.stream_info(subjects.flow_stream("default", flow))
    destination = (config or {}).get("config", {}).get("subject_transform", {}).get("dest", "")
    return f".{owner}." in destination


async def test_publishing_while_running_switches_and_retires_the_old(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-6", chain("order", "price"))
        await client.start("orders-6")
        old = (await client.get_status("orders-6")).steps[1].pin.digest
        new = await rig.push(WORK)
        await client.update_draft("orders-6", flow_spec_to_proto(chain("order", "price")))
        await client.inject("orders-6", b"{}", request_id="before")
        result = await client.publish("orders-6")
        assert (result.version, result.deployment) == (2, 2)
        await client.inject("orders-6", b"{}", request_id="after")
        await eventually(lambda: len(rig.agent.handled) == 2)
        assert [item[0] for item in rig.agent.handled] == [1, 2]
        status = await client.get_status("orders-6")
        assert status.steps[1].pin.digest == new != old
        await eventually(lambda: phase_is(rig, "orders-6", 1, DeploymentPhase.RETIRED))
        await eventually(lambda: not rig.agent.of("orders-6", 1))
        names = {str(info["name"]) for info in await rig.assets.consumers("hr_default_orders-6")}
        assert names == {"d2_order", "d2_price"}
        await eventually(lambda: holders_are(rig, "orders-6", {"v1", "d2"}))


async def holders_are(rig: OrchestratorRig, flow: str, holders: set[str]) -> bool:
    return {key.rsplit(".", 1)[1] for key in await rig.stores.pins.keys(f"*.{flow}.*")} == holders


async def test_a_publish_that_fails_to_warm_leaves_the_running_deployment(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-7", chain("order", "price"))
        await client.start("orders-7")
        await rig.push(WORK)
        rig.agent.fail.add("price")
        await client.update_draft("orders-7", flow_spec_to_proto(chain("order", "price")))
        with pytest.raises(HeadraceError, match="step 'price'"):
            await client.publish("orders-7")
        flow = await client.get_flow("orders-7")
        assert (flow.running_version, flow.active_deployment, flow.latest_version) == (1, 1, 2)
        assert {sidecar.spec.deployment for sidecar in rig.agent.sidecars.values()} == {1}
        await client.inject("orders-7", b"{}")
        await eventually(lambda: len(rig.agent.handled) == 1)


async def test_killed_in_the_middle_of_a_start_it_goes_on(rig: OrchestratorRig) -> None:
    rig.agent.hold.add("price")
    async with rig.client() as client:
        await published(rig, client, "orders-8", chain("order", "price", "check"))
        operation = await client.begin_start("orders-8")
        await eventually(lambda: len(rig.agent.sidecars) == 3)
        await rig.kill()
        rig.agent.release("price")
        await rig.restart()
        result = await client.wait_operation(operation, timeout_s=20)
        assert result.deployment == 1
        assert await state_of(client, "orders-8") == "FLOW_STATE_RUNNING"
        assert len(rig.agent.started) == 3


async def test_killed_at_any_moment_of_start_and_stop_it_ends_them(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-9", chain("order", "price"))
        for round_number in range(4):
            starting = await client.begin_start("orders-9")
            await asyncio.sleep(0.03 * round_number)  # tidy: pace
            await rig.kill()
            await rig.restart()
            await client.wait_operation(starting, timeout_s=20)
            stopping = await client.begin_stop("orders-9")
            await asyncio.sleep(0.02 * round_number)  # tidy: pace
            await rig.kill()
            await rig.restart()
            await client.wait_operation(stopping, timeout_s=20)
            assert rig.agent.sidecars == {}
            assert await rig.assets.consumers("hr_default_orders-9") == []
        assert all(key.endswith(".v1") for key in await rig.stores.pins.keys("*.orders-9.*"))


async def test_what_is_lost_or_changed_is_repaired(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-10", chain("order", "price"))
        await client.start("orders-10")
        good = await rig.stream_config("orders-10")
        await rig.assets.delete_consumer("hr_default_orders-10", "d1_price")
        transform: Any = good["subject_transform"]
        stolen = {**good, "subject_transform": {**transform, "dest": "hr.default.orders-10.d9.x.0"}}
        await rig.assets.ensure_stream(stolen)
        await rig.agent.lose_all()

        async def repaired() -> bool:
            names = {str(info["name"]) for info in await rig.assets.consumers("hr_default_orders-10")}
            return (
                (await rig.stream_config("orders-10"))["subject_transform"] == good["subject_transform"]
                and names == {"d1_order", "d1_price"}
                and len(rig.agent.of("orders-10", 1)) == 2
            )

        await eventually(repaired, within_s=12)
        await eventually(lambda: all(item.status.progress == 7 for item in rig.agent.of("orders-10", 1)))
        await client.inject("orders-10", b"{}")
        await eventually(lambda: len(rig.agent.handled) == 1)


async def test_a_plan_written_by_an_older_version_goes_by_the_digest_of_its_own_bytes(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-14", chain("order"))
        await client.start("orders-14")
        key = bucket_names.plan_key("orders-14", 1)
        entry = await rig.stores.deployments.get(key)
        assert entry is not None
        written = json.loads(entry.value or b"")
        del written["passthrough"]  # as if this had come later
        older = json.dumps(written).encode()
        await rig.kill()
        await rig.stores.deployments.update(key, older, entry.revision)
        await rig.restart()
        await rig.agent.lose_all()
        await eventually(lambda: [item.status.progress for item in rig.agent.of("orders-14", 1)] == [7], within_s=12)
        assert [item.spec.plan_digest for item in rig.agent.of("orders-14", 1)] == [plan_digest(older)]
        (deployment,) = await client.list_deployments("orders-14")
        assert deployment.plan_digest == plan_digest(older)


async def test_a_stop_overtakes_a_start(rig: OrchestratorRig) -> None:
    rig.agent.hold.add("price")
    async with rig.client() as client:
        await published(rig, client, "orders-11", chain("order", "price"))
        starting = await client.begin_start("orders-11")
        await eventually(lambda: len(rig.agent.sidecars) == 2)
        await client.stop("orders-11")
        with pytest.raises(Conflict, match="overtaken"):
            await client.wait_operation(starting, timeout_s=5)
        assert rig.agent.sidecars == {}


async def test_bad_input_is_refused_and_nothing_is_left(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await rig.push(HOOK)
        await rig.push(WORK)
        with pytest.raises(InvalidInput, match=r"steps\[0\].to\[0\]"):
            await client.create_flow(
                "orders-12", flow_spec_to_proto(FlowSpec("realtime", (StepSpec("a", "hook", to=("x",)),)))
            )
        with pytest.raises(NotFound):
            await client.get_flow("orders-12")
        steps = (
            StepSpec("order", "nowhere", to=("price", "check")),
            StepSpec("price", "work", function="vanish"),
            StepSpec("check", "work", config={"limit": 0}),
        )
        await client.create_flow("orders-12", flow_spec_to_proto(FlowSpec("realtime", steps)))
        with pytest.raises(AlreadyExists):
            await client.create_flow("orders-12", flow_spec_to_proto(chain("order")))
        with pytest.raises(InvalidInput) as refusal:
            await client.publish("orders-12")
        fields = {violation.field for violation in refusal.value.violations}
        assert fields == {"steps[0].component", "steps[1].function", "steps[2].config.limit"}
        with pytest.raises(WrongState, match="no version"):
            await client.start("orders-12")
        swapped = FlowSpec("realtime", (StepSpec("order", "work", to=("price",)), StepSpec("price", "hook")))
        await client.update_draft("orders-12", flow_spec_to_proto(swapped))
        with pytest.raises(InvalidInput, match="is an action, but step 'order' starts the flow"):
            await client.publish("orders-12")
        with pytest.raises(Conflict, match="etag"):
            await client.update_draft("orders-12", flow_spec_to_proto(chain("order")), etag="0")
        entry = await rig.stores.flows.get(flow_key("orders-12"))
        assert entry is not None
        assert decode(entry.value or b"", dict)["latest_version"] == 0


async def test_a_full_edge_is_refused_with_a_time_to_wait(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await published(rig, client, "orders-13", chain("order", max_waiting=3))
        await client.start("orders-13")
        rig.agent.keep.add("order")
        for number in range(3):
            await client.inject("orders-13", b"{}", request_id=f"{number}")
        with pytest.raises(Exhausted, match="same request_id"):
            await client.inject("orders-13", b"{}", request_id="3")
        assert (await client.inject("orders-13", b"{}", request_id="0")).duplicate
        await client.stop("orders-13", drop=True)
        await client.delete_flow("orders-13")
        assert await rig.stores.pins.keys("*.orders-13.*") == []
        assert (await rig.stores.route("orders-13"))[0] is None
