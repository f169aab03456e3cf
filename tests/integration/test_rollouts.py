"""Which code runs: publish, restart, rollback, both strategies, strict order, drafts, versions, differences."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client import AsyncClient
from headrace.client.operations import metadata_of
from headrace.edge.grpc_channel import open_channel
from headrace.model.deployment import DeploymentPhase
from headrace.model.errors import Conflict, HeadraceError, InvalidInput, NotFound, WrongState
from tests.support.eventually import eventually
from tests.support.orchestrator_rig import HOOK, WORK, OrchestratorRig, chain, orchestrator_rig, published
from tests.support.rollouts import FLOW, digest_of, edited, phase_is, running


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[OrchestratorRig]:
    async with orchestrator_rig(tmp_path) as running:
        yield running


async def test_restart_takes_fresh_revisions_and_rollback_takes_back_the_old_ones(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        old = await digest_of(client)
        new = await rig.push(WORK)
        assert await digest_of(client) == old
        result = await client.restart(FLOW)
        assert (result.version, result.deployment) == (1, 2)
        assert await digest_of(client) == new
        [step] = result.difference.steps
        assert (step.step, step.change, step.old_digest, step.new_digest) == ("price", "changed", old, new)
        assert (step.old_revision, step.new_revision, result.difference.against) == (1, 2, 1)
        await eventually(lambda: phase_is(rig, 1, DeploymentPhase.RETIRED))

        back = await client.rollback(FLOW, 1)
        assert (back.version, back.deployment) == (1, 3)
        assert await digest_of(client) == old
        again = await client.rollback(FLOW, 1)
        assert await digest_of(client) == new
        assert again.difference.steps[0].new_digest == new


async def test_a_rollback_to_an_older_version_reuses_its_digests_whatever_latest_is(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        first = await digest_of(client)
        await rig.push(WORK)
        await edited(client, chain("order", "price"))
        published_as = await client.publish(FLOW)
        assert [field.field for field in published_as.difference.steps[0].fields] == ["config.limit"]
        await rig.push(WORK)
        await client.restart(FLOW)
        await eventually(lambda: holders_are(rig, {"v1", "v2", "d3"}))
        back = await client.rollback(FLOW, 1)
        assert (back.version, await digest_of(client)) == (1, first)
        flow = await client.get_flow(FLOW)
        assert (flow.running_version, flow.latest_version) == (1, 2)
        with pytest.raises(NotFound, match="no version 7"):
            await client.rollback(FLOW, 7)
        with pytest.raises(WrongState, match="runs already"):
            await client.rollback(FLOW, 1)


async def holders_are(rig: OrchestratorRig, holders: set[str]) -> bool:
    return {key.rsplit(".", 1)[1] for key in await rig.stores.pins.keys(f"*.{FLOW}.*")} == holders


async def test_an_unchanged_publish_says_so_and_names_what_would_change_it(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await client.draft_from(FLOW, 1)
        with pytest.raises(WrongState) as refusal:
            await client.publish(FLOW)
        assert refusal.value.reason == "UNCHANGED"
        assert "headrace flow apply" in refusal.value.next_step
        upgraded = await client.upgrade_draft(FLOW)
        assert dict(upgraded.changes) == {"order": "hook -> hook@1", "price": "work -> work@1"}
        await rig.push(WORK)
        with pytest.raises(WrongState, match="component upgrade orders") as refusal:
            await client.publish(FLOW)
        assert "revision 2 is there" in str(refusal.value)
        upgraded = await client.upgrade_draft(FLOW, components=["work"])
        assert dict(upgraded.changes) == {"price": "work@1 -> work@2"}
        assert dict((await client.upgrade_draft(FLOW)).changes) == {}
        result = await client.publish(FLOW)
        assert result.version == 2
        await rig.push(WORK)
        assert (await client.restart(FLOW)).difference.steps == []
        with pytest.raises(InvalidInput, match="nowhere"):
            await client.upgrade_draft(FLOW, components=["nowhere"])
        with pytest.raises(WrongState, match="flow restart orders"):
            await client.publish(FLOW)


async def test_verbs_in_the_wrong_state_wrong_etags_and_repeated_request_ids(rig: OrchestratorRig) -> None:
    async with rig.client() as client, open_channel(rig.address) as channel:
        flows: Any = flow_pb2_grpc.FlowServiceStub(channel)
        await published(rig, client, FLOW, chain("order", "price"))
        with pytest.raises(WrongState, match=r"STOPPED.*flow start orders"):
            await client.restart(FLOW)
        with pytest.raises(WrongState, match="has never run"):
            await client.rollback(FLOW, 1)
        await client.start(FLOW)
        with pytest.raises(Conflict, match="etag"):
            await client.restart(FLOW, etag="77")
        with pytest.raises(Conflict, match="etag"):
            await client.rollback(FLOW, 1, etag="77")
        with pytest.raises(InvalidInput, match="strict_order"):
            await client.restart(FLOW, strategy="RESTART", strict_order=True)
        with pytest.raises(InvalidInput, match="SIDEWAYS"):
            await client.restart(FLOW, strategy="SIDEWAYS")
        etag = (await client.get_flow(FLOW)).etag
        request = flow_pb2.RestartFlowRequest(name=f"flows/{FLOW}", request_id="r-1", etag=etag)
        first, second = await asyncio.gather(flows.RestartFlow(request), flows.RestartFlow(request))
        await client.wait_operation(first, timeout_s=20)
        third = await flows.RestartFlow(request)
        assert first.name == second.name == third.name
        assert (await client.get_flow(FLOW)).active_deployment == 2
        rig.agent.hold.add("price")
        operation = await client.begin_restart(FLOW)
        with pytest.raises(WrongState, match=r"busy with operations/restart-orders-") as refusal:
            await client.restart(FLOW)
        assert refusal.value.reason == "BUSY"
        rig.agent.release("price")
        await client.wait_operation(operation, timeout_s=20)


async def test_what_fails_to_warm_leaves_the_running_deployment(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        old = await digest_of(client)
        await rig.push(WORK)
        rig.agent.fail.add("price")
        with pytest.raises(HeadraceError) as failure:
            await client.restart(FLOW)
        for expected in ("step 'price'", "No module x", "Deployment 1 runs on, untouched"):
            assert expected in str(failure.value)
        rig.agent.fail.clear()
        rig.agent.hold.add("price")
        with pytest.raises(HeadraceError, match=r"not ready within 0.5 s: step 'price' is STARTING"):
            await client.restart(FLOW, timeout_s=0.5)
        assert await digest_of(client) == old
        await client.inject(FLOW, b"{}")
        await eventually(lambda: [item[0] for item in rig.agent.handled] == [1])
        assert {item.spec.deployment for item in rig.agent.sidecars.values()} == {1}


async def test_versions_in_use_and_pinned_revisions_cannot_be_deleted(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await edited(client, chain("order", "price"))
        await rig.push(WORK)
        await client.publish(FLOW)
        await eventually(lambda: holders_are(rig, {"v1", "d2"}))
        for version, word in ((2, "live"), (3, "no version")):
            with pytest.raises(HeadraceError, match=word):
                await client.delete_version(FLOW, version)
        with pytest.raises(WrongState, match="flows/orders/versions/1"):
            await client.delete_revision("work", 1)
        for _ in range(3):
            await rig.push(WORK)
        assert [item.name for item in await client.purge_revisions()] == [
            "components/work/revisions/3",
            "components/work/revisions/4",
        ]
        await client.tag_revision("work", 3, "keep")
        deleted = await client.purge_revisions("work", force=True)
        assert [item.number for item in deleted] == [4]
        await client.delete_version(FLOW, 1)
        await eventually(lambda: holders_are(rig, {"d2"}))
        assert [item.number for item in await client.list_versions(FLOW)] == [2]
        with pytest.raises(NotFound, match="deleted"):
            await client.rollback(FLOW, 1)
        assert [item.number for item in await client.purge_revisions("work", force=True)] == [1]
        assert [item.number for item in await client.list_revisions("work")] == [5, 3, 2]
        assert (await client.list_revisions("hook"))[0].pinned_by


async def test_ctrl_c_of_the_client_changes_nothing(rig: OrchestratorRig) -> None:
    async with rig.client() as client:
        await running(rig, client)
        await rig.push(HOOK)
        new = await rig.push(WORK)
        rig.agent.hold.add("price")
        command = [sys.executable, "-m", "headrace.cli.main", "flow", "restart", FLOW, "--address", rig.address]
        process = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        await eventually(lambda: is_at(client, "price: init"), within_s=20)
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            _, rest = await process.communicate()
        assert process.returncode == 130
        assert "goes on in the mesh" in rest.decode()
        rig.agent.release("price")
        await eventually(lambda: deployment_is(client, 2))
        assert await digest_of(client) == new


async def is_at(client: AsyncClient, line: str) -> bool:
    """Whether the operation at work has come so far."""
    name = (await client.get_flow(FLOW)).running_operation
    steps = metadata_of(await client.get_operation(name)).steps if name else {}
    return line in {f"{step}: {state}" for step, state in steps.items()}


async def deployment_is(client: AsyncClient, number: int) -> bool:
    return (await client.get_flow(FLOW)).active_deployment == number


async def test_the_commands_say_what_they_did(rig: OrchestratorRig) -> None:
    async def headrace(*arguments: str) -> str:
        command = [sys.executable, "-m", "headrace.cli.main", *arguments, "--address", rig.address]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        async with asyncio.timeout(30):
            output, _ = await process.communicate()
        assert process.returncode == 0, arguments
        return output.decode()

    async with rig.client() as client:
        await running(rig, client)
        await rig.push(WORK)
        await rig.push(WORK)
        assert "price: work -> work@3" in await headrace("component", "upgrade", FLOW)
        text = await headrace("flow", "publish", FLOW)
        assert "published version 2, deployment 2 runs it" in text
        assert "~ price: work@1 -> work@3" in text
        assert "work@2" in await headrace("component", "gc", "--yes")
        assert [item.number for item in await client.list_revisions("work")] == [3, 1]
        text = await headrace("flow", "rollback", FLOW, "1", "--strategy", "restart")
        assert "rolled back, deployment 3 runs version 1" in text
        assert "~ price: work@3 -> work@1" in text
        assert "version 2 is the draft" in await headrace("flow", "draft", FLOW, "--from", "2")
