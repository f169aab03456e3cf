"""Many messages into a flow: `inject_many` sends them in calls of what is there, and again what can be sent again."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from typing import NamedTuple

from headrace.api.flow.v1 import flow_pb2, flow_pb2_grpc
from headrace.client.session import Session, resource
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import Exhausted

MOST_IN_A_CALL = 500
MOST_BYTES_IN_A_CALL = 4 * 1024 * 1024
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 1.0
# Of these the mesh knows exactly when it is worth trying again.
EXACT_PAUSES = frozenset({"RATE_LIMITED"})

Message = flow_pb2.InjectedMessage | bytes


class Injected(NamedTuple):
    """What became of one message; `number` counts them from 0."""

    number: int
    request_id: str
    outcome: flow_pb2.InjectionOutcome

    @property
    def stored(self) -> bool:
        return not self.outcome.HasField("refusal")


class InjectionCalls(Session):
    """Flow names may be given as `orders` or as `flows/orders`."""

    async def inject_many(
        self,
        flow: str,
        messages: Iterable[Message] | AsyncIterable[Message],
        *,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        request_id: str = "",
        patience_s: float = 30.0,
    ) -> AsyncGenerator[Injected, None]:
        """Publishes messages to the flow's trigger and says of each, in their order, what became of it.

        They go in calls of up to 500, one call at a time, of what is there: nobody waits for a full call. `bytes` are
        bodies of that `content_type` with those `headers`. A message without a request id gets `request_id` and its
        number (`load:0`, `load:1`, ...), so that a repeated run under the same `request_id` stores nothing twice within
        the duplicate window. What is refused for now (a full edge, a rate) is sent again until nothing was stored for
        `patience_s`; then it is told as refused. Errors of the flow itself (stopped, not there) are raised.
        """
        drawn = request_id or uuid.uuid4().hex
        number = 0
        async with contextlib.aclosing(_calls(messages)) as calls:
            async for lot in calls:
                named: dict[int, flow_pb2.InjectedMessage] = {}
                for given in lot:
                    message = flow_pb2.InjectedMessage()
                    if isinstance(given, bytes):
                        message.body, message.content_type = given, content_type
                        message.headers.update(headers or {})
                    else:
                        message.CopyFrom(given)
                    message.request_id = message.request_id or f"{drawn}:{number}"
                    named[number] = message
                    number += 1
                outcomes = await self._inject_all(flow, named, patience_s)
                for place, message in named.items():
                    yield Injected(place, message.request_id, outcomes[place])

    async def _inject_all(
        self, flow: str, messages: Mapping[int, flow_pb2.InjectedMessage], patience_s: float
    ) -> dict[int, flow_pb2.InjectionOutcome]:
        loop, stub = asyncio.get_running_loop(), flow_pb2_grpc.FlowServiceStub(self.channel)
        settled: dict[int, flow_pb2.InjectionOutcome] = {}
        left, pause_s, stored_at = dict(messages), FIRST_PAUSE_S, loop.time()
        while True:
            request = flow_pb2.InjectMessagesRequest(name=resource("flows", flow), messages=left.values())
            try:
                answer = await self._call(stub.InjectMessages, request)
            except Exhausted:  # as many such calls are in work as may be
                if loop.time() - stored_at + pause_s > patience_s:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
                continue
            again: dict[int, flow_pb2.InjectionOutcome] = {}
            for place, outcome in zip(left, answer.outcomes, strict=True):
                (again if outcome.refusal.retry_after_ms else settled)[place] = outcome
            if len(again) < len(left):
                pause_s, stored_at = FIRST_PAUSE_S, loop.time()
            if not again:
                return settled
            if loop.time() - stored_at + pause_s > patience_s:
                return settled | again
            asked = max(
                (o.refusal.retry_after_ms for o in again.values() if o.refusal.reason in EXACT_PAUSES), default=0
            )
            await asyncio.sleep(max(pause_s, asked / 1000))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            left = {place: messages[place] for place in again}


async def _calls(messages: Iterable[Message] | AsyncIterable[Message]) -> AsyncGenerator[list[Message], None]:
    if not isinstance(messages, AsyncIterable):
        for lot in _lots(messages):
            yield lot
        return
    queue: asyncio.Queue[Message | None] = asyncio.Queue(MOST_IN_A_CALL)
    reading = asyncio.ensure_future(_read(messages, queue))
    try:
        ended = False
        while not ended:
            waiting = [await queue.get()]
            while not queue.empty():
                waiting.append(queue.get_nowait())
            ended = waiting[-1] is None
            for lot in _lots(message for message in waiting if message is not None):
                yield lot
        await reading
    finally:
        await end_tasks([reading])


async def _read(messages: AsyncIterable[Message], queue: asyncio.Queue[Message | None]) -> None:
    """None is the end, also where reading fails: whoever waits for the task gets the error."""
    try:
        async for message in messages:
            await queue.put(message)
    except Exception:
        await queue.put(None)
        raise
    await queue.put(None)


def _lots(messages: Iterable[Message]) -> Iterator[list[Message]]:
    lot, size = list[Message](), 0
    for message in messages:
        added = len(message) if isinstance(message, bytes) else message.ByteSize()
        if lot and (len(lot) == MOST_IN_A_CALL or size + added > MOST_BYTES_IN_A_CALL):
            yield lot
            lot, size = [], 0
        lot.append(message)
        size += added
    if lot:
        yield lot
