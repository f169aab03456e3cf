"""Runs one call of a function, for the server and for the test harness alike.

`begin_call` makes the first step at once, in the caller's own task: most coroutines end there and never need a
task of their own. One that has to wait is handed back, and `await resume(...)` in the same task drives it to
its end, so that `asyncio.current_task()`, timeouts and task groups work as in any task. Each call has its own
`contextvars` context. Whatever a function does, its call ends in exactly one `end` event.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from time import monotonic_ns
from typing import Any

from headrace.model.limits import MAX_BODY_BYTES
from headrace.sdk.attachments import Attachment, reachable, waited
from headrace.sdk.body import UndecodableInput
from headrace.sdk.context import _CURRENT, Context, EventSink, StepScope, encoded
from headrace.sdk.errors import (
    BAD_INPUT,
    COMPONENT_ERROR,
    MAX_ERROR_CHARACTERS,
    TIMEOUT,
    ComponentError,
    Rebound,
)
from headrace.sdk.function import Function
from headrace.sdk.message import CallInput
from headrace.sdk.telemetry import TELEMETRY

_enter_trace = TELEMETRY.enter


class Suspended:
    """A call that waits for something. `cancel_as` is set by whoever cancels its task, and why."""

    __slots__ = ("cancel_as", "context", "coroutine", "run", "sink", "started_ns", "yielded")

    TIMEOUT = "timeout"
    CLOSED = "closed"

    def __init__(
        self,
        context: Context,
        sink: EventSink,
        coroutine: Coroutine[Any, Any, Any],
        run: Callable[..., Any],
        yielded: Any,
        started_ns: int,
    ) -> None:
        self.context = context
        self.sink = sink
        self.coroutine = coroutine
        self.run = run
        self.yielded = yielded
        self.started_ns = started_ns
        self.cancel_as = ""


def begin_call(function: Function, source: CallInput, scope: StepScope, sink: EventSink) -> Suspended | None:
    """Runs the call as far as it goes without waiting; None when it is over.

    A plain function runs to its end: call this in a thread then. Raises nothing of the user's code.
    """
    started_ns = monotonic_ns()
    context = Context(scope, source, sink)
    try:
        decode = function.decode
        run = copy_context().run
        if source.attachments and decode is not None:
            return _begin_loading(function, context, sink, run, started_ns)
        value = None if decode is None else decode(source.body)
        if not function.is_async:
            finish_call(context, sink, run(_enter_plain, function, value, context), started_ns)
            return None
        coroutine = function.invoke(value, context)
    except BaseException as error:
        fail_call(context, sink, error, started_ns)
        return None
    try:
        yielded = run(_enter, context, coroutine)
    except StopIteration as stop:
        finish_call(context, sink, stop.value, started_ns)
        return None
    except BaseException as error:
        fail_call(context, sink, error, started_ns)
        return None
    return Suspended(context, sink, coroutine, run, yielded, started_ns)


def _begin_loading(
    function: Function, context: Context, sink: EventSink, run: Callable[..., Any], started_ns: int
) -> Suspended | None:
    """A call of a function that takes a value, whose body may have to be fetched first."""
    decode = function.decode
    assert decode is not None
    if not function.is_async:
        body = waited(context.message.load(), reachable(context._scope.transfers).loop)
        finish_call(context, sink, run(_enter_plain, function, decode(body), context), started_ns)
        return None

    async def call() -> Any:
        return await function.invoke(decode(await context.message.load()), context)

    coroutine = call()
    try:
        yielded = run(_enter, context, coroutine)
    except StopIteration as stop:
        finish_call(context, sink, stop.value, started_ns)
        return None
    return Suspended(context, sink, coroutine, run, yielded, started_ns)


def _enter(context: Context, coroutine: Coroutine[Any, Any, Any]) -> Any:
    _CURRENT.set(context)
    _enter_trace(context.message)
    return coroutine.send(None)


def _enter_plain(function: Function, value: Any, context: Context) -> Any:
    _CURRENT.set(context)
    _enter_trace(context.message)
    return function.invoke(value, context)


@types.coroutine
def resume(call: Suspended) -> Generator[Any, Any, None]:
    """Drives a suspended call to its end, in the task that began it.

    Cancelling that task cancels the function. With `cancel_as` TIMEOUT the call then fails with that code; with
    CLOSED the cancellation goes on to the task.
    """
    coroutine, run, yielded = call.coroutine, call.run, call.yielded
    while True:
        step: Callable[..., Any]
        argument: Any
        try:
            argument = yield yielded
            step = coroutine.send
        except GeneratorExit:
            coroutine.close()
            raise
        except BaseException as thrown:
            step, argument = coroutine.throw, thrown
        try:
            yielded = run(step, argument)
        except StopIteration as stop:
            finish_call(call.context, call.sink, stop.value, call.started_ns)
            return
        except asyncio.CancelledError as error:
            if call.cancel_as == Suspended.CLOSED:
                raise
            if call.cancel_as == Suspended.TIMEOUT:
                late = ComponentError(TIMEOUT, "the call took longer than its limit", status=504, retryable=True)
                fail_call(call.context, call.sink, late, call.started_ns)
                return
            fail_call(call.context, call.sink, error, call.started_ns)
            return
        except BaseException as error:
            fail_call(call.context, call.sink, error, call.started_ns)
            return


async def end_call(call: Suspended, timeout_ms: int) -> None:
    """`resume` within the call's own limit (0 for none); the task is the one that began it."""
    task = asyncio.current_task()
    assert task is not None
    if not timeout_ms:
        await resume(call)
        return
    timer = asyncio.get_running_loop().call_later(timeout_ms / 1000, _expire, call, task)
    try:
        await resume(call)
    finally:
        timer.cancel()
        if call.cancel_as == Suspended.TIMEOUT:
            task.uncancel()


def _expire(call: Suspended, task: asyncio.Task[Any]) -> None:
    call.cancel_as = Suspended.TIMEOUT
    task.cancel()


def finish_call(context: Context, sink: EventSink, value: Any, started_ns: int) -> None:
    """Ends a call that returned: what it returned, if anything, is emitted."""
    body: bytes | None = None
    content_type = ""
    if value is not None:
        try:
            if type(value) is Attachment:
                context.emit(value)
            else:
                body, content_type = encoded(value, "")
                if len(body) > MAX_BODY_BYTES:
                    context.emit(body, content_type=content_type)
                    body = None
        except BaseException as error:
            fail_call(context, sink, error, started_ns)
            return
    if not context.has_spoken:
        sink.done(context.call, body, content_type, started_ns, monotonic_ns())
        return
    if body is not None:
        sink.data(context.call, body, content_type, None, "")
    sink.end(context.call, started_ns, monotonic_ns())


def fail_call(context: Context, sink: EventSink, error: BaseException, started_ns: int) -> None:
    """Ends a call that raised; what is no error of the contract's is logged with its traceback."""
    call = context.call
    if isinstance(error, ComponentError):
        sink.error(call, error.code, _shown(error.message), error.retryable, error.status)
    elif isinstance(error, UndecodableInput):
        sink.error(call, BAD_INPUT, _shown(error), False, 400)
    elif isinstance(error, Rebound):
        sink.rebound(call, _shown(error.reason), round(error.delay_s * 1000))
    else:
        sink.error(call, COMPONENT_ERROR, f"{type(error).__name__}: {_shown(error)}", True, 0)
        context.log.exception("call failed", error)
    sink.end(call, started_ns, monotonic_ns())


def _shown(error: object) -> str:
    """Text of an error, bounded and always encodable; a broken __str__ must not fail the process."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"(its text cannot be read: {type(broken).__name__})"
    return text[:MAX_ERROR_CHARACTERS].encode("utf-8", "replace").decode()
