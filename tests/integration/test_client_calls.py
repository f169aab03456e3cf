"""How the client calls: retries under one request id, limits, errors, operations; against a real gRPC server."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from google.longrunning import operations_pb2, operations_pb2_grpc

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client import AsyncClient, Client
from headrace.edge.error_interceptor import status_of
from headrace.edge.grpc_server import GrpcServer
from headrace.model.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    FieldViolation,
    HeadraceError,
    InvalidInput,
    NotFound,
    Unavailable,
)


class ScriptedFlows(flow_pb2_grpc.FlowServiceServicer, operations_pb2_grpc.OperationsServicer):
    """Fails as often as told; remembers what it was asked."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.requests: list[Any] = []
        self.looks = 0
        self.looks_until_done = 3
        self.operation_error: HeadraceError | None = None

    def _note(self, request: Any) -> None:
        self.requests.append(request)
        if self.failures:
            raise self.failures.pop(0)

    async def GetFlow(self, request: Any, context: Any) -> Any:
        self._note(request)
        return flow_pb2.Flow(name=request.name)

    async def CreateFlow(self, request: Any, context: Any) -> Any:
        self._note(request)
        return flow_pb2.Flow(name=f"flows/{request.flow_id}", etag="created")

    async def UpdateDraft(self, request: Any, context: Any) -> Any:
        self._note(request)
        return flow_pb2.Flow(name=request.name, etag="updated")

    async def DeleteFlow(self, request: Any, context: Any) -> Any:
        self._note(request)
        return flow_pb2.DeleteFlowResponse()

    async def InjectMessage(self, request: Any, context: Any) -> Any:
        self._note(request)
        return flow_pb2.InjectMessageResponse(execution_id=request.request_id)

    async def ListFlows(self, request: Any, context: Any) -> Any:
        page = int(request.page_token or "0")
        flows = [flow_pb2.Flow(name=f"flows/f{page}")]
        return flow_pb2.ListFlowsResponse(flows=flows, next_page_token=str(page + 1) if page < 4 else "")

    async def StartFlow(self, request: Any, context: Any) -> Any:
        self._note(request)
        return self._operation()

    async def WaitOperation(self, request: Any, context: Any) -> Any:
        self._note(request)
        self.looks += 1
        return self._operation()

    def _operation(self) -> Any:
        operation = operations_pb2.Operation(name="operations/1", done=self.looks >= self.looks_until_done)
        metadata = flow_pb2.FlowOperationMetadata(verb="start", flow="orders", steps={"price": f"look {self.looks}"})
        operation.metadata.Pack(metadata)
        if operation.done and self.operation_error is not None:
            operation.error.ParseFromString(status_of(self.operation_error).SerializeToString())
        elif operation.done:
            operation.response.Pack(flow_pb2.FlowOperationResult(flow="flows/orders", version=1, deployment=2))
        return operation

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for number in range(request.lines):
            yield flow_pb2.TailLogsResponse(lines=[flow_pb2.LogLine(message=f"line {number}")])


@pytest.fixture
def flows() -> ScriptedFlows:
    return ScriptedFlows()


@pytest.fixture
async def address(flows: ScriptedFlows) -> AsyncIterator[str]:
    server = GrpcServer()
    server.add(flow_pb2_grpc.add_FlowServiceServicer_to_server, flows, "headrace.api.flow.v1.FlowService")
    server.add(operations_pb2_grpc.add_OperationsServicer_to_server, flows, "google.longrunning.Operations")
    yield await server.start("127.0.0.1:0")
    await server.stop(0.1)


async def test_unavailable_is_retried_under_the_same_request_id(flows: ScriptedFlows, address: str) -> None:
    flows.failures = [Unavailable("not now"), Unavailable("not now")]
    async with AsyncClient(address) as client:
        answer = await client.inject("orders", b"{}")
    assert len(flows.requests) == 3
    assert {request.request_id for request in flows.requests} == {answer.execution_id}


async def test_after_five_attempts_the_error_comes_through(flows: ScriptedFlows, address: str) -> None:
    flows.failures = [Unavailable("not now", reason="NO_LEADER", next_step="Wait") for _ in range(9)]
    async with AsyncClient(address) as client:
        with pytest.raises(Unavailable, match="not now") as caught:
            await client.get_flow("orders")
    assert (caught.value.reason, caught.value.next_step) == ("NO_LEADER", "Wait")
    assert len(flows.requests) == 5


async def test_other_errors_are_not_retried_and_keep_their_details(flows: ScriptedFlows, address: str) -> None:
    violation = FieldViolation("steps[0].to[0]", "'x' is not a step")
    flows.failures = [InvalidInput("bad draft", reason="UNKNOWN_STEP", next_step="Name one", violations=[violation])]
    async with AsyncClient(address) as client:
        with pytest.raises(InvalidInput) as caught:
            await client.update_draft("orders", flow_pb2.FlowSpec())
    assert caught.value.message == "bad draft"
    assert caught.value.violations == (violation,)
    assert len(flows.requests) == 1


async def test_every_call_that_changes_something_has_an_id_that_its_repeats_keep(
    flows: ScriptedFlows, address: str
) -> None:
    async with AsyncClient(address) as client:
        for call in (
            lambda: client.create_flow("orders", flow_pb2.FlowSpec()),
            lambda: client.update_draft("orders", flow_pb2.FlowSpec()),
            lambda: client.delete_flow("orders"),
            lambda: client.begin_start("orders"),
        ):
            flows.requests.clear()
            flows.failures = [Unavailable("lost"), Unavailable("lost")]
            await call()
            assert len(flows.requests) == 3
            assert len({request.request_id for request in flows.requests}) == 1
            assert flows.requests[0].request_id
        await client.delete_flow("orders", request_id="mine")
        assert flows.requests[-1].request_id == "mine"
        flows.failures = [AlreadyExists("there is one")]
        with pytest.raises(AlreadyExists):
            await client.create_flow("orders", flow_pb2.FlowSpec())


async def test_the_mesh_says_how_long_to_wait_and_attempts_end_with_the_deadline(
    flows: ScriptedFlows, address: str
) -> None:
    later = Unavailable("the leader changed", metadata={"retry_after_ms": "300"})
    flows.failures = [later]
    async with AsyncClient(address, timeout_s=1.0) as client:
        began = time.monotonic()
        await client.get_flow("orders")
        assert time.monotonic() - began >= 0.3
        flows.failures = [Unavailable("later", metadata={"retry_after_ms": "5000"})]
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await client.get_flow("orders")
        assert time.monotonic() - began < 0.9


async def test_nobody_listens() -> None:
    began = time.monotonic()
    async with AsyncClient("127.0.0.1:1") as client:
        with pytest.raises(Unavailable, match="no mesh answers at") as caught:
            await client.server_info()
    assert caught.value.reason == "MESH_UNREACHABLE"
    assert "headrace up" in caught.value.next_step
    assert time.monotonic() - began < 5


async def test_pages_are_followed(address: str) -> None:
    async with AsyncClient(address) as client:
        assert [flow.name for flow in await client.list_flows()] == [f"flows/f{page}" for page in range(5)]


async def test_an_operation_is_followed_with_progress(flows: ScriptedFlows, address: str) -> None:
    seen: list[str] = []
    async with AsyncClient(address) as client:
        result = await client.start("orders", progress=lambda now: seen.append(now.steps["price"]))
    assert (result.version, result.deployment) == (1, 2)
    assert seen == ["look 0", "look 1", "look 2", "look 3"]
    assert flows.requests[0].timeout.seconds == 120


async def test_an_operation_outlives_a_mesh_that_is_away_for_a_while(flows: ScriptedFlows, address: str) -> None:
    async with AsyncClient(address) as client:
        operation = await client.begin_start("orders")
        flows.failures = [Unavailable("restarting") for _ in range(6)]
        assert (await client.wait_operation(operation, timeout_s=10)).deployment == 2


async def test_a_failed_operation_raises_its_error(flows: ScriptedFlows, address: str) -> None:
    flows.operation_error = Conflict("somebody else started it", next_step="Look")
    async with AsyncClient(address) as client:
        with pytest.raises(Conflict, match="somebody else") as caught:
            await client.start("orders")
    assert caught.value.next_step == "Look"
    assert caught.value.metadata["operation"] == "operations/1"


async def test_waiting_has_a_limit(flows: ScriptedFlows, address: str) -> None:
    flows.looks_until_done = 10**6
    async with AsyncClient(address) as client:
        operation = await client.begin_start("orders")
        with pytest.raises(DeadlineExceeded) as caught:
            await client.wait_operation(operation, timeout_s=0.2)
    assert caught.value.reason == "OPERATION_NOT_DONE"


async def test_the_sync_face_does_the_same_from_any_thread(flows: ScriptedFlows, address: str) -> None:
    outcome: dict[str, Any] = {}

    def use() -> None:
        with Client(address) as client:
            outcome["flow"] = client.get_flow("orders").name
            outcome["lines"] = [line.message for line in client.tail_logs("orders", lines=3)]
            stream = client.tail_logs("orders", lines=1000)
            outcome["first"] = next(stream).message
            stream.close()  # type: ignore[attr-defined]
            flows.failures = [NotFound("no such flow")]
            try:
                client.get_flow("other")
            except NotFound as error:
                outcome["error"] = error.message

    await in_thread(use)
    assert outcome == {
        "flow": "flows/orders",
        "lines": ["line 0", "line 1", "line 2"],
        "first": "line 0",
        "error": "no such flow",
    }
    assert not [thread for thread in threading.enumerate() if thread.name == "headrace-client"]


async def in_thread(work: Callable[[], None]) -> None:
    import asyncio

    async with asyncio.timeout(20):
        await asyncio.to_thread(work)


def test_every_call_of_the_async_client_has_its_sync_face() -> None:
    def public(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_") and callable(getattr(kind, name))}

    assert public(AsyncClient) - public(Client) == set()
    for name in public(AsyncClient) - {"close"}:
        assert getattr(Client, name).__doc__ == getattr(AsyncClient, name).__doc__
