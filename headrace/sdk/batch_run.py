"""Runs one batch of calls, for the server and for the test harness alike: every message ends for itself.

A batch that fails as a whole was for nothing: what it emitted is forgotten, and its messages are called one by one,
so that only the one at fault fails. Each call ends in exactly one `end` event, whatever the function does.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextvars import copy_context
from dataclasses import dataclass
from time import monotonic_ns
from typing import Any

from headrace.api.component.v1 import component_pb2
from headrace.sdk.batch_function import BatchFunction
from headrace.sdk.call import fail_call, finish_call
from headrace.sdk.context import _CURRENT, Context, EventSink, StepScope
from headrace.sdk.errors import TIMEOUT, ComponentError, Rebound
from headrace.sdk.event_frame import FULL_FRAME_BYTES, EventFrame
from headrace.sdk.message import CallInput
from headrace.sdk.outbox import Outbox
from headrace.sdk.telemetry import TELEMETRY

HandBack = Callable[[list[EventFrame]], Awaitable[None]]


@dataclass(slots=True)
class Arrival:
    """A message that waits for its batch; `at` is when it came, on the loop's clock."""

    source: CallInput
    at: float

    @property
    def due(self) -> float:
        """When its time is up."""
        return self.at + self.source.timeout_ms / 1000 if self.source.timeout_ms else float("inf")


@dataclass(slots=True, eq=False)
class RunningBatch:
    """For who asks where calls stand."""

    context: Context
    coroutine: Any
    started_ns: int


class BatchSink:
    """Keeps a batch's events until it is over; then they come late (`late`), or, of a batch that is void, not at all.
    For any thread."""

    def __init__(self, late: EventSink) -> None:
        self._late = late
        self._lock = threading.Lock()
        self._new_frame = late.new_frame if isinstance(late, Outbox) else EventFrame
        self._frames: list[EventFrame] | None = [self._new_frame()]
        self._void = False

    def close(self, *, void: bool = False) -> list[EventFrame]:
        """What was noted; nothing is kept from here on."""
        with self._lock:
            frames, self._frames, self._void = self._frames or [], None, void
        return [frame for frame in frames if frame.size]

    def _note(self, event: str, *arguments: Any) -> None:
        with self._lock:
            if (frames := self._frames) is not None:
                if frames[-1].size >= FULL_FRAME_BYTES:
                    frames.append(self._new_frame())
                getattr(frames[-1], event)(*arguments)
                return
        if not self._void:
            getattr(self._late, event)(*arguments)

    def data(self, call: int, body: bytes, content_type: str, headers: Mapping[str, str] | None, key: str) -> None:
        self._note("data", call, body, content_type, headers, key)

    def reply(self, call: int, status: int, body: bytes, content_type: str, headers: Mapping[str, str] | None) -> None:
        self._note("reply", call, status, body, content_type, headers)

    def output(self, call: int, emit: component_pb2.Emit) -> None:
        self._note("output", call, emit)

    def answer(self, call: int, reply: component_pb2.ReplyEmit) -> None:
        self._note("answer", call, reply)

    def error(self, call: int, code: str, message: str, retryable: bool, status: int) -> None:
        self._note("error", call, code, message, retryable, status)

    def rebound(self, call: int, reason: str, delay_ms: int) -> None:
        self._note("rebound", call, reason, delay_ms)

    def snapshot(self, call: int, json: str, merge: bool, if_revision: int | None) -> None:
        self._note("snapshot", call, json, merge, if_revision)

    def end(self, call: int, started_ns: int, ended_ns: int) -> None:
        self._note("end", call, started_ns, ended_ns)

    def done(self, call: int, body: bytes | None, content_type: str, started_ns: int, ended_ns: int) -> None:
        self._note("done", call, body, content_type, started_ns, ended_ns)


class BatchRunner:
    """`await run(arrivals)` calls the function with them; `hand_back` gets frames of events as soon as they are final.
    Cancelled, it cancels the function and hands nothing back."""

    def __init__(
        self,
        function: BatchFunction,
        scope: StepScope,
        late: EventSink,
        hand_back: HandBack,
        executor: Executor | None = None,
    ) -> None:
        self._function, self._scope = function, scope
        self._late, self._hand_back, self._executor = late, hand_back, executor
        self._loop = asyncio.get_running_loop()
        self._variables = copy_context()
        self.running: set[RunningBatch] = set()

    async def run(self, arrivals: Sequence[Arrival]) -> None:
        started_ns = monotonic_ns()
        sink, refused = BatchSink(self._late), BatchSink(self._late)
        members: list[tuple[Arrival, Context]] = []
        values: list[Any] = []
        for arrival in arrivals:
            context = Context(self._scope, arrival.source, sink)
            try:
                values.append(await self._value(context, arrival))
            except Exception as error:
                fail_call(context, refused, error, started_ns)
            else:
                members.append((arrival, context))
        frames = refused.close()
        if members:
            contexts = [context for _, context in members]
            results, problem = await self._call(values, contexts, min(arrival.due for arrival, _ in members))
            if problem is not None and len(members) > 1 and not isinstance(problem, (Rebound, _TimeIsUp)):
                sink.close(void=True)
                await self._hand_back(frames)
                await self._one_by_one([arrival for arrival, _ in members], problem)
                return
            for context, result in zip(contexts, results, strict=True):
                if problem is not None or isinstance(result, BaseException):
                    fail_call(context, sink, problem or result, started_ns)
                else:
                    finish_call(context, sink, result, started_ns)
        await self._hand_back(frames + sink.close())

    async def _one_by_one(self, arrivals: Sequence[Arrival], problem: BaseException) -> None:
        self._scope.log.exception(f"a batch of {len(arrivals)} failed; its messages are called one by one", problem)
        for arrival in arrivals:
            await self._loop.create_task(self.run([arrival]), context=self._variables.copy())

    async def _value(self, context: Context, arrival: Arrival) -> Any:
        if arrival.due <= self._loop.time():
            raise _TimeIsUp("its time was up before its batch began")
        decode, source = self._function.decode, arrival.source
        if decode is None:
            return None
        return decode(await context.message.load() if source.attachments else source.body)

    async def _call(
        self, values: list[Any], contexts: list[Context], due: float
    ) -> tuple[Sequence[Any], BaseException | None]:
        """What the function answered for each, or what it raised. It has a task of its own, so that what it does to
        that is its own affair; or a thread."""
        variables = self._variables.copy()
        work: asyncio.Future[tuple[Any, BaseException | None]]
        limit_s: float | None = None
        running: RunningBatch | None = None
        if not self._function.is_async:
            work = self._loop.run_in_executor(self._executor, variables.run, self._plainly, values, contexts)
        else:
            limit_s = None if due == float("inf") else due - self._loop.time()
            try:
                coroutine = variables.run(self._invoked, values, contexts)
            except BaseException as error:
                return contexts, error
            running = RunningBatch(contexts[0], coroutine, monotonic_ns())
            self.running.add(running)
            work = self._loop.create_task(_ended(coroutine), context=variables)
        try:
            await asyncio.wait((work,), timeout=limit_s)
            timed_out = not work.done()
            if timed_out:
                work.cancel()
                await asyncio.wait((work,))
        finally:
            work.cancel()
            if running is not None:
                self.running.discard(running)
        if work.cancelled():
            text = "the call took longer than its limit"
            return contexts, _TimeIsUp(text) if timed_out else asyncio.CancelledError("the function cancelled itself")
        results, problem = work.result()
        return (contexts, problem) if problem is not None else _checked(results, contexts)

    def _invoked(self, values: list[Any], contexts: list[Context]) -> Any:
        _enter(contexts)
        return self._function.invoke_batch(values, contexts)

    def _plainly(self, values: list[Any], contexts: list[Context]) -> tuple[Any, BaseException | None]:
        try:
            return self._invoked(values, contexts), None
        except BaseException as error:  # some cannot go through a future
            return None, error


async def _ended(coroutine: Awaitable[Any]) -> tuple[Any, BaseException | None]:
    """What it returns, or raises: a task that raises SystemExit would end the process."""
    try:
        return await coroutine, None
    except (asyncio.CancelledError, GeneratorExit):
        raise
    except BaseException as error:
        return None, error


class _TimeIsUp(ComponentError):
    """A batch, or a message that waited for its own, ran into the step's time limit."""

    def __init__(self, message: str) -> None:
        super().__init__(TIMEOUT, message, status=504, retryable=True)


def _enter(contexts: list[Context]) -> None:
    """What is logged and printed belongs to a message only where there is one; spans come to stand in the trace of the
    first."""
    if len(contexts) == 1:
        _CURRENT.set(contexts[0])
    TELEMETRY.enter(contexts[0].message)


def _checked(results: Any, contexts: Sequence[Context]) -> tuple[Sequence[Any], BaseException | None]:
    """An entry for each message; None where nothing was answered at all."""
    if results is None:
        return [None] * len(contexts), None
    if isinstance(results, list | tuple) and len(results) == len(contexts):
        return results, None
    found = f"{len(results)} entries" if isinstance(results, list | tuple) else f"a {type(results).__name__}"
    text = f"the function answered {found} for {len(contexts)} messages: return None, or a list with an entry for each"
    return contexts, TypeError(text)
