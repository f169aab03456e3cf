"""Runs the hooks of a component, for the server and for the test harness alike."""

from __future__ import annotations

import asyncio
from contextvars import copy_context
from typing import Any, NoReturn

import msgspec

from headrace.api.component.v1 import component_pb2
from headrace.model.limits import MAX_HOOK_RESULT_BYTES
from headrace.sdk.context import Context, StepScope
from headrace.sdk.function import Hook


async def run_hook(hook: Hook | None, scope: StepScope) -> Any:
    """Runs a hook, a plain one in a thread. Answers what it answers, raises what it raises."""
    if hook is None:
        return None
    context = Context(scope, component_pb2.Input(), _NoEvents())
    if hook.is_async:
        return await hook.invoke(context)
    return await asyncio.to_thread(copy_context().run, hook.invoke, context)


def encode_result(result: Any) -> str:
    """What a startup hook returned, as JSON; ValueError where it cannot be kept."""
    try:
        raw = msgspec.json.encode(result)
    except (TypeError, ValueError, msgspec.MsgspecError) as error:
        raise ValueError(f"the result is no JSON: {error}") from error
    if len(raw) > MAX_HOOK_RESULT_BYTES:
        raise ValueError(f"the result has {len(raw)} bytes, more than {MAX_HOOK_RESULT_BYTES}")
    return raw.decode()


class _NoEvents:
    """A hook is not a call: it cannot emit."""

    def _refuse(self, *_: Any) -> NoReturn:
        raise RuntimeError("hooks cannot emit or reply; only functions can")

    data = reply = error = rebound = snapshot = end = output = answer = done = _refuse
