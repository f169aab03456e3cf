"""The API's rules on a real mesh: request ids, etags, masks, checks without writing, pages, details of errors."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client import AlreadyExists, AsyncClient, Conflict, DeadlineExceeded, InvalidInput, NotFound, Unavailable
from headrace.client.operations import result_of
from tests.support.commands import ROOT
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh
from tests.support.small_flow import replying

MANIFEST = "name: {name}\nfunctions: {{act: {{kind: action}}}}\n"


@pytest.fixture
async def client(module_mesh: RunningMesh) -> AsyncIterator[AsyncClient]:
    async with AsyncClient(module_mesh.api) as opened:
        yield opened


@pytest.fixture
def name() -> str:
    """Of a flow and of a component that no other test uses."""
    return f"api-{secrets.token_hex(4)}"


def write(folder: Path, name: str, word: str = "one") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "component.yaml").write_text(MANIFEST.format(name=name))
    (folder / "component.py").write_text(replying(word))
    return folder


def spec(component: str = "webhook", **fields: Any) -> flow_pb2.FlowSpec:
    step = flow_pb2.Step(name="receive", component=component, function="receive")
    return flow_pb2.FlowSpec(type=flow_pb2.FLOW_TYPE_REALTIME, steps=[step], **fields)


def one() -> str:
    return str(uuid.uuid4())


async def test_the_same_request_id_gets_the_same_answer_and_does_nothing_twice(client: AsyncClient, name: str) -> None:
    await client.push_component(ROOT / "components" / "webhook")
    made, changed, gone = one(), one(), one()
    created = await client.create_flow(name, spec(), request_id=made)
    assert await client.create_flow(name, spec(), request_id=made) == created
    with pytest.raises(InvalidInput) as caught:
        await client.create_flow(name, spec(description="another"), request_id=made)
    assert (caught.value.reason, caught.value.field) == ("REQUEST_ID_REUSED", "request_id")
    with pytest.raises(AlreadyExists):
        await client.create_flow(name, spec(), request_id=one())
    updated = await client.update_draft(name, spec(description="first"), request_id=changed)
    await client.update_draft(name, spec(description="second"))
    assert await client.update_draft(name, spec(description="first"), request_id=changed) == updated
    assert (await client.get_flow(name)).draft.description == "second", "a late repeat undoes nothing"
    several = await asyncio.gather(*(client.begin_publish(name, request_id=made) for _ in range(3)))
    assert len({operation.name for operation in several}) == 1
    await client.publish(name, request_id=made)
    assert [version.number for version in await client.list_versions(name)] == [1]
    await client.delete_flow(name, request_id=gone)
    await client.delete_flow(name, request_id=gone)
    await client.create_flow(name, spec())
    await client.delete_flow(name, request_id=gone)
    assert (await client.get_flow(name)).draft.steps, "the flow that was made since stays"
    await client.delete_flow(name)
    with pytest.raises(NotFound):
        await client.delete_flow(name)


async def test_the_registry_does_a_request_once_and_checks_etags(
    client: AsyncClient, name: str, tmp_path: Path
) -> None:
    pushed = await client.push_component(write(tmp_path, name), validate_only=True)
    assert (pushed.created, pushed.revision.number) == (True, 1)
    with pytest.raises(NotFound):
        await client.get_component(name)
    for number in (1, 2):
        await client.push_component(write(tmp_path, name, f"word {number}"))
    tagged, removed = one(), one()
    before = await client.get_component(name)
    first = await client.tag_revision(name, 1, "stable", etag=before.etag, request_id=tagged)
    assert first.number == 1
    with pytest.raises(Conflict) as caught:
        await client.tag_revision(name, 2, "stable", etag=before.etag)
    present = (await client.get_component(name)).etag
    assert (caught.value.reason, caught.value.metadata["etag"]) == ("ETAG_MISMATCH", present)
    await client.tag_revision(name, 2, "stable", etag=present)
    await client.tag_revision(name, 1, "stable", etag=before.etag, request_id=tagged)
    assert (await client.get_component(name)).tags["stable"] == 2, "a late repeat moves nothing back"
    with pytest.raises(Conflict):
        await client.delete_revision(name, 1, etag=present)
    etag = (await client.get_component(name)).etag
    await client.delete_revision(name, 1, etag=etag, request_id=removed)
    await client.delete_revision(name, 1, etag=etag, request_id=removed)
    assert [revision.number for revision in await client.list_revisions(name)] == [2]


async def test_etags_masks_and_checks_without_writing(client: AsyncClient, name: str) -> None:
    await client.push_component(ROOT / "components" / "webhook")
    assert (await client.create_flow(name, spec(), validate_only=True)).name == f"flows/{name}"
    with pytest.raises(NotFound):
        await client.get_flow(name)
    flow = await client.create_flow(name, spec(description="kept", max_waiting=7))
    changed = await client.update_draft(name, flow_pb2.FlowSpec(max_waiting=9), fields=["max_waiting"])
    assert (changed.draft.max_waiting, changed.draft.description) == (9, "kept")
    reset = await client.update_draft(name, flow_pb2.FlowSpec(), fields=["max_waiting"])
    assert (reset.draft.max_waiting, len(reset.draft.steps)) == (10_000, 1)
    with pytest.raises(InvalidInput) as caught:
        await client.update_draft(name, flow_pb2.FlowSpec(), fields=["description", "max_wating"])
    assert caught.value.field == "update_mask.paths[1]"
    assert "max_waiting" in caught.value.next_step
    for call in (
        client.update_draft(name, spec(), etag=flow.etag),
        client.delete_flow(name, etag=flow.etag),
        client.begin_publish(name, etag=flow.etag),
        client.begin_start(name, etag=flow.etag),
        client.begin_stop(name, etag=flow.etag, drop=True),
    ):
        with pytest.raises(Conflict) as conflict:
            await call
        assert conflict.value.metadata["etag"] == reset.etag
    would = await client.begin_publish(name, validate_only=True, etag=reset.etag)
    assert (would.name, would.done, result_of(would).version) == ("", True, 1)
    assert (await client.get_flow(name)).latest_version == 0
    await client.update_draft(name, spec(component="nowhere"))
    with pytest.raises(InvalidInput, match="cannot be resolved"):
        await client.begin_publish(name, validate_only=True)
    assert (await client.get_flow(name)).latest_version == 0
    await client.delete_flow(name)


async def test_every_list_has_pages_whose_tokens_are_its_own(client: AsyncClient, name: str) -> None:
    names = [f"{name}-{number}" for number in range(5)]
    for flow in names:
        await client.create_flow(flow, spec())
    stub: Any = flow_pb2_grpc.FlowServiceStub(client.channel)
    seen: list[str] = []
    token = ""
    while True:
        page = await stub.ListFlows(flow_pb2.ListFlowsRequest(page_size=2, page_token=token))
        assert len(page.flows) <= 2
        seen += [flow.name for flow in page.flows]
        if token == "":
            await client.delete_flow(names[0])  # what comes and goes between pages moves nothing
            first_token = page.next_page_token
        token = page.next_page_token
        if not token:
            break
    mine = [flow for flow in seen if flow.startswith(f"flows/{name}")]
    assert mine == [f"flows/{flow}" for flow in names]
    for request in (
        stub.ListVersions(flow_pb2.ListVersionsRequest(parent=f"flows/{names[1]}", page_token=first_token)),
        stub.ListDeployments(flow_pb2.ListDeploymentsRequest(parent=f"flows/{names[1]}", page_token=first_token)),
        stub.ListHistory(flow_pb2.ListHistoryRequest(page_token=first_token)),
        stub.ListFlows(flow_pb2.ListFlowsRequest(page_size=-1)),
        stub.ListFlows(flow_pb2.ListFlowsRequest(page_token="MQ")),
    ):
        with pytest.raises(Exception, match=r"page_token|page_size") as caught:
            await request
        assert caught.value.code().name == "INVALID_ARGUMENT"
    operations = operations_pb2_grpc.OperationsStub(client.channel)
    await client.update_draft(names[1], spec())
    listed = await operations.ListOperations(operations_pb2.ListOperationsRequest(filter="flow=nothing AND done=true"))
    assert not listed.operations
    for flow in names[1:]:
        await client.delete_flow(flow)


@pytest.mark.needs("grpcurl")
async def test_grpcurl_prints_what_is_wrong(client: AsyncClient, grpcurl: str, name: str) -> None:
    await client.create_flow(name, spec())

    def refused(method: str, request: dict[str, Any]) -> str:
        command = [grpcurl, "-plaintext", "-format-error", "-max-time", "20", "-d", json.dumps(request)]
        finished = subprocess.run(
            [*command, client.address, f"headrace.api.flow.v1.FlowService/{method}"],
            capture_output=True,
            text=True,
            timeout=40,
        )
        assert finished.returncode != 0
        assert "Traceback" not in finished.stderr
        return finished.stderr

    state = await asyncio.to_thread(refused, "StopFlow", {"name": f"flows/{name}"})
    assert '"@type": "type.googleapis.com/google.rpc.ErrorInfo"' in state
    assert "google.rpc.PreconditionFailure" in state
    assert '"violations"' in state
    mask = await asyncio.to_thread(
        refused, "UpdateDraft", {"name": f"flows/{name}", "update_mask": {"paths": ["descripton"]}}
    )
    assert "google.rpc.BadRequest" in mask
    assert '"update_mask.paths[0]"' in mask
    assert "description" in mask
    etag = await asyncio.to_thread(refused, "DeleteFlow", {"name": f"flows/{name}", "etag": "old"})
    assert '"etag": "1"' in etag
    await client.delete_flow(name)


async def test_a_kill_in_between_refuses_nothing_and_does_nothing_twice(
    module_mesh: RunningMesh, client: AsyncClient, name: str
) -> None:
    async def insist(call: Callable[[], Awaitable[Any]]) -> Any:
        """Under one request id, until there is an answer."""
        for _ in range(30):
            try:
                return await call()
            except (Unavailable, DeadlineExceeded):
                continue
            except Conflict as error:
                if error.reason != "REQUEST_IN_PROGRESS":
                    raise
        raise AssertionError("no answer")

    async def whole_life(flow: str) -> None:
        ids = [one() for _ in range(3)]
        made = await insist(lambda: client.create_flow(flow, spec(), request_id=ids[0]))
        begun.append(flow)
        changed = await insist(lambda: client.update_draft(flow, spec(), etag=made.etag, request_id=ids[1]))
        assert int(changed.etag) == int(made.etag) + 1
        await insist(lambda: client.delete_flow(flow, etag=changed.etag, request_id=ids[2]))

    begun: list[str] = []
    async with asyncio.timeout(50), asyncio.TaskGroup() as tasks:
        for number in range(12):
            tasks.create_task(whole_life(f"{name}-{number}"))
        await eventually(lambda: begun, within_s=10)
        module_mesh.kill("orchestrator")
    assert not [flow.name for flow in await client.list_flows() if flow.name.startswith(f"flows/{name}")]
