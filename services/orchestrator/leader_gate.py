"""What needs the leader is done by the leader: here while this process leads, else passed on to whoever does.

So every orchestrator may be asked for everything. Reads from KV are answered where they arrive. A call that
comes while nobody leads waits for a leader, a few seconds at most; one that is under way when the leader
changes ends with UNAVAILABLE, to be repeated with its request id.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.edge.grpc_channel import open_channel
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import Unavailable
from services.orchestrator.call_passage import pass_on
from services.orchestrator.caller import USER_KEY, caller_of, set_caller
from services.orchestrator.lease import Lease

LED_SERVICES = (
    "/headrace.api.flow.v1.FlowService/",
    "/headrace.api.deadletter.v1.DeadLetterService/",
    "/headrace.api.snapshot.v1.SnapshotService/",
    "/headrace.api.stimulus.v1.StimulusService/",
    "/headrace.api.credential.v1.CredentialService/",
    "/headrace.api.step.v1.StepService/",
    "/google.longrunning.Operations/",
)
# Answered from KV and the broker by every orchestrator. Whatever else a led service has is for the leader.
READS = frozenset(
    {
        *("GetFlow", "ListFlows", "GetVersion", "ListVersions", "ListDeployments", "ListHistory"),
        *("TailLogs", "GetServerInfo", "ListOperations"),
        *("WatchFlows", "WatchDeployments", "WatchOperations"),
        *("GetCredential", "ListCredentials"),
        *("ListStimuli", "GetStimulus"),
        *("ListDeadLetters", "GetDeadLetter", "WatchDeadLetters", "ListInDoubt"),
    }
)
PASSED_KEY = "headrace-passed-by"
WAIT_S = 8.0
POLL_S = 0.05
CONNECT_S = 0.3
KEPT_CHANNELS = 4

T = TypeVar("T")


class LeaderGate(grpc.aio.ServerInterceptor):
    """Owns the channels to other orchestrators; `close` them at the end."""

    def __init__(self, lease: Lease) -> None:
        self._lease = lease
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def close(self) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels.values()))
        self._channels.clear()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        handler = await continuation(handler_call_details)
        method = str(handler_call_details.method)
        if handler is None or not method.startswith(LED_SERVICES) or method.rpartition("/")[2] in READS:
            return handler
        passed = any(key == PASSED_KEY for key, _ in handler_call_details.invocation_metadata or ())
        if not self._lease.leading and not await self._somebody_leads(passed=passed):
            return _refusing(handler, self._lease)
        if self._lease.leading:
            return self._here(handler)
        return self._there(method, endless=handler.response_streaming)

    async def _somebody_leads(self, *, passed: bool) -> bool:
        """Waits until this process leads, or another does and can be reached. A passed call is not passed twice."""
        deadline = time.monotonic() + (CONNECT_S if passed else WAIT_S)
        while not self._lease.leading:
            leader = self._lease.leader
            elsewhere = not passed and leader is not None and not self._lease.is_own(leader)
            if elsewhere and leader is not None and await _connects(self._channel(leader.address)):
                return True
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = open_channel(address)
        return self._channels[address]

    def _here(self, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        lease = self._lease
        epoch = lease.epoch

        def still() -> bool:
            return lease.leading and lease.epoch == epoch

        async def unary(request: Any, context: Any) -> Any:
            set_caller(caller_of(context))
            return await self._while(still, handler.unary_unary(request, context))

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            set_caller(caller_of(context))
            async with contextlib.aclosing(handler.unary_stream(request, context)) as answers:
                with contextlib.suppress(StopAsyncIteration):
                    while True:
                        yield await self._while(still, anext(answers))

        make: Any = grpc.unary_unary_rpc_method_handler
        if handler.response_streaming:
            make = grpc.unary_stream_rpc_method_handler
        made: grpc.RpcMethodHandler[Any, Any] = make(
            stream if handler.response_streaming else unary, handler.request_deserializer, handler.response_serializer
        )
        return made

    def _there(self, method: str, *, endless: bool) -> grpc.RpcMethodHandler[Any, Any]:
        lease = self._lease
        leader = lease.leader
        assert leader is not None
        channel = self._channel(leader.address)

        def still() -> bool:
            return lease.leader is not None and lease.leader.incarnation == leader.incarnation

        async def passed_on(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            extra = ((USER_KEY, caller_of(context)), (PASSED_KEY, lease.name))
            passage = pass_on(channel, method, requests, context, extra=extra, endless=endless)
            async with contextlib.aclosing(passage) as answers:  # type: ignore[type-var]
                with contextlib.suppress(StopAsyncIteration):
                    while True:
                        yield await self._while(still, anext(answers))

        made: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(passed_on)
        return made

    async def _while(self, still: Callable[[], bool], work: Awaitable[T]) -> T:
        """The outcome of `work`, unless the leader changes first."""
        task = asyncio.ensure_future(work)
        with self._lease.watching() as changed:
            try:
                while True:
                    waiting = asyncio.ensure_future(changed.wait())
                    try:
                        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        waiting.cancel()
                    if task.done():
                        return task.result()
                    changed.clear()
                    if not still():
                        raise Unavailable(
                            "the leader changed during this call",
                            reason="LEADER_CHANGED",
                            next_step="Try again with the same request_id",
                            metadata={"retry_after_ms": "300"},
                        )
            finally:
                await end_tasks([task])


def _refusing(handler: Any, lease: Lease) -> grpc.RpcMethodHandler[Any, Any]:
    """A handler of the same kind that says who leads instead."""

    async def unary(request: Any, context: Any) -> Any:
        raise lease.refusal()

    async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
        raise lease.refusal()
        yield

    made: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(unary)
    if handler.response_streaming:
        made = grpc.unary_stream_rpc_method_handler(stream)
    return made


async def _connects(channel: grpc.aio.Channel) -> bool:
    """Whether the channel is ready, or gets so in a moment."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(CONNECT_S):
            while (state := channel.get_state(try_to_connect=True)) != grpc.ChannelConnectivity.READY:
                if state == grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                    return False
                await channel.wait_for_state_change(state)
            return True
    return False
