"""What one caller can make a server spend: slow readers, vanished clients, streams, no deadline, long answers."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.edge.call_bounds import CallBounds
from headrace.edge.grpc_channel import open_channel
from headrace.edge.grpc_server import GrpcServer
from tests.support.eventually import eventually

SLOW_S = 0.5
MOST, MOST_OF_ONE = 6, 4
UNARY_S = 0.5
READER = """
import asyncio, sys
from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.edge.grpc_channel import open_channel

async def main():
    async with open_channel(sys.argv[1]) as channel:
        stub = flow_pb2_grpc.FlowServiceStub(channel)
        calls = [stub.WatchFlows(flow_pb2.WatchFlowsRequest()) for _ in range(3)]
        for call in calls:
            await call.read()
        print("reading", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


class Talkative(flow_pb2_grpc.FlowServiceServicer):
    """Its logs never end, its watches say one thing and wait; counts what it still works on."""

    def __init__(self) -> None:
        self.working = 0
        self.written = 0

    async def TailLogs(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.working += 1
        try:
            while True:
                yield flow_pb2.TailLogsResponse(lines=[flow_pb2.LogLine(message="x" * 100_000)])
                self.written += 1
        finally:
            self.working -= 1

    async def WatchFlows(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.working += 1
        try:
            yield flow_pb2.WatchFlowsResponse(synced=True)
            await asyncio.Event().wait()
        finally:
            self.working -= 1

    async def GetFlow(self, request: Any, context: Any) -> Any:
        if request.name == "flows/slow":
            await asyncio.Event().wait()
        return flow_pb2.Flow(name="x" * (5 * 1024 * 1024))


@pytest.fixture
def flows() -> Talkative:
    return Talkative()


@pytest.fixture
async def server(flows: Talkative) -> AsyncIterator[GrpcServer]:
    bounds = CallBounds(most_streams=MOST, most_of_one=MOST_OF_ONE, slow_reader_s=SLOW_S, unary_limit_s=UNARY_S)
    running = GrpcServer(bounds=bounds)
    running.add(flow_pb2_grpc.add_FlowServiceServicer_to_server, flows, "headrace.api.flow.v1.FlowService")
    await running.start("127.0.0.1:0")
    yield running
    await running.stop(0.1)


@pytest.fixture
async def stub(server: GrpcServer) -> AsyncIterator[Any]:
    async with grpc.aio.insecure_channel(server.address) as channel:
        yield flow_pb2_grpc.FlowServiceStub(channel)


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return str(info.reason)


async def read_on(call: Any) -> None:
    """Until the stream ends."""
    while await call.read() is not grpc.aio.EOF:
        pass


async def test_a_slow_reader_is_dropped_and_learns_why(server: GrpcServer, flows: Talkative, stub: Any) -> None:
    call = stub.TailLogs(flow_pb2.TailLogsRequest(name="flows/orders", follow=True))
    await call.read()
    await eventually(lambda: flows.working == 0, within_s=5)
    assert flows.written < 200, "what a reader does not take is not made"
    await eventually(lambda: server.bounds.open_streams == 0, within_s=5)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await asyncio.wait_for(read_on(call), 10)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "SLOW_READER"


async def test_a_client_that_vanishes_leaves_no_work_behind(server: GrpcServer, flows: Talkative) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", READER, server.address, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(20):
        assert await process.stdout.readline() == b"reading\n"
    assert (flows.working, server.bounds.open_streams) == (3, 3)
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    await eventually(lambda: (flows.working, server.bounds.open_streams) == (0, 0), within_s=5)


async def test_streams_are_counted_by_connection_and_in_all(server: GrpcServer, stub: Any) -> None:
    calls = [stub.WatchFlows(flow_pb2.WatchFlowsRequest()) for _ in range(MOST_OF_ONE)]
    for call in calls:
        await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.WatchFlows(flow_pb2.WatchFlowsRequest()).read()
    assert reason_of(caught.value) == "TOO_MANY_STREAMS"
    assert "by this connection" in str(caught.value.details())
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(server.address, options=options) as other:
        for _ in range(MOST - MOST_OF_ONE):
            calls.append(flow_pb2_grpc.FlowServiceStub(other).WatchFlows(flow_pb2.WatchFlowsRequest()))
            await calls[-1].read()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await flow_pb2_grpc.FlowServiceStub(other).WatchFlows(flow_pb2.WatchFlowsRequest()).read()
        assert "in all" in str(caught.value.details())
        calls[0].cancel()
        await eventually(lambda: server.bounds.open_streams == MOST - 1)
        await flow_pb2_grpc.FlowServiceStub(other).WatchFlows(flow_pb2.WatchFlowsRequest()).read()


async def test_a_call_without_a_deadline_gets_one_and_a_too_long_answer_is_said_to_be_so(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetFlow(flow_pb2.GetFlowRequest(name="flows/slow"))
    assert (caught.value.code(), reason_of(caught.value)) == (grpc.StatusCode.DEADLINE_EXCEEDED, "NO_DEADLINE")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetFlow(flow_pb2.GetFlowRequest(name="flows/long"), timeout=10)
    assert (caught.value.code(), reason_of(caught.value)) == (
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "ANSWER_TOO_LARGE",
    )


async def test_our_own_channel_gives_unary_calls_a_deadline(server: GrpcServer) -> None:
    async with open_channel(server.address, timeout_s=0.2) as channel:
        stub = flow_pb2_grpc.FlowServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetFlow(flow_pb2.GetFlowRequest(name="flows/slow"))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
