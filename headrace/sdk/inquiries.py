"""What a component is asked beside its calls: is this credential good, what do you take and emit, what can be chosen;
and the news that its credential has changed. Failures become a HookProblem in the component's own words.
"""

from __future__ import annotations

import asyncio
import os
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import grpc
import msgspec

from headrace.api.component.v1 import component_pb2
from headrace.sdk.body import json_schema
from headrace.sdk.choices import Choice, Metadata
from headrace.sdk.component import Component
from headrace.sdk.context import StepIdentity, StepScope
from headrace.sdk.credentials import read_credentials
from headrace.sdk.errors import ComponentError, DefinitionError
from headrace.sdk.hooks import run_hook
from headrace.sdk.log import ComponentLog

MAX_PROBLEM = 2_000
MAX_CHOICES = 10_000
MAX_TEXT = 1_000

Answer = TypeVar("Answer")


class NotOffered(Exception):
    """The component has no hook for what it is asked."""


async def change_credentials(component: Component, scope: StepScope, text: str) -> component_pb2.HookProblem | None:
    """The new value for all calls from now on, once the component's hook has taken it; else why not."""
    try:
        fresh = read_credentials(text)
        trial = replace(scope, credentials=fresh)
        await run_hook(component.credentials_hook, trial)
    except (asyncio.CancelledError, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        scope.log.exception("the new credentials are refused", error)
        return problem_of(error)
    scope.credentials = fresh
    return None


async def verify(
    component: Component, request: component_pb2.VerifyRequest, log: ComponentLog
) -> component_pb2.VerifyResponse:
    """Whether the credential is good; NotOffered where the component cannot tell."""
    hook = component.verify_hook
    if hook is None:
        raise NotOffered("the component has no verify hook: decorate one with @component.verify")

    async def asked() -> component_pb2.VerifyResponse:
        answer = await run_hook(hook, _scope(request, log))
        if answer is None or answer is True:
            return component_pb2.VerifyResponse(verified=True)
        raise TypeError(f"verify answered {answer!r}") if answer is not False else ValueError("verify answered False")

    return await _answered(asked(), lambda problem: component_pb2.VerifyResponse(problem=problem))


async def metadata(
    component: Component, request: component_pb2.GetMetadataRequest, log: ComponentLog
) -> component_pb2.GetMetadataResponse:
    """Schemas: of the hook, else those that follow from the function's types."""
    try:
        function = component.function(request.function)
    except DefinitionError as error:
        raise NotOffered(str(error)) from error
    hook = component.metadata_hook(function.name)

    async def asked() -> component_pb2.GetMetadataResponse:
        found = await run_hook(hook, _scope(request, log))
        if found is None:
            found = Metadata()
        if not isinstance(found, Metadata):
            raise TypeError(f"a metadata hook answers Metadata(input=…, output=…), not {type(found).__name__}")
        into, out = _schema(found.input), _schema(found.output)
        return component_pb2.GetMetadataResponse(
            in_schema_json=_json(into or function.in_schema), out_schema_json=_json(out or function.out_schema)
        )

    return await _answered(asked(), lambda problem: component_pb2.GetMetadataResponse(problem=problem))


async def select_model(
    component: Component, request: component_pb2.SelectModelRequest, log: ComponentLog
) -> component_pb2.SelectModelResponse:
    """What can be chosen from a model; NotOffered names those there are."""
    names = sorted(component.models)
    if not request.model:
        return component_pb2.SelectModelResponse(models=names)
    hook = component.models.get(request.model)
    if hook is None:
        raise NotOffered(f"the component has no model {request.model!r}; it has {', '.join(names) or 'none'}")

    async def asked() -> component_pb2.SelectModelResponse:
        choices = _choices(await run_hook(hook, _scope(request, log)))
        return component_pb2.SelectModelResponse(models=names, choices=choices)

    return await _answered(asked(), lambda problem: component_pb2.SelectModelResponse(models=names, problem=problem))


async def _answered(asked: Awaitable[Answer], failed: Callable[[component_pb2.HookProblem], Answer]) -> Answer:
    """What the component says; `failed` where its code raises, whatever it raises."""
    try:
        return await asked
    except (asyncio.CancelledError, SystemExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        return failed(problem_of(error))


async def answer_or_refuse(work: Awaitable[Answer], context: Any) -> Answer:
    """The answer; UNIMPLEMENTED where the component has no hook for it."""
    try:
        return await work
    except NotOffered as error:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, str(error)[:MAX_PROBLEM])
        raise AssertionError("abort does not return") from error
    except DefinitionError as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:MAX_PROBLEM])
        raise AssertionError("abort does not return") from error


def problem_of(error: BaseException) -> component_pb2.HookProblem:
    """The error in its own words, with its place in the component's code."""
    kind = error.code if isinstance(error, ComponentError) else type(error).__name__
    words = error.message if isinstance(error, ComponentError) else str(error)
    return component_pb2.HookProblem(message=(words or kind)[:MAX_PROBLEM], kind=kind[:100], where=_where(error))


def _where(error: BaseException) -> str:
    """The innermost frame in the component's folder, where the process runs; else the innermost outside the SDK."""
    frames = traceback.extract_tb(error.__traceback__)
    here, own = os.getcwd() + os.sep, os.path.dirname(__file__) + os.sep
    inside = [frame for frame in frames if os.path.abspath(frame.filename).startswith(here)]
    inside = [frame for frame in inside if not frame.filename.startswith(own)]
    others = [frame for frame in frames if not frame.filename.startswith(own)]
    if not inside and not others:
        return ""
    frame = (inside or others)[-1]
    path = os.path.abspath(frame.filename)
    return f"{path.removeprefix(here) if inside else Path(path).name}:{frame.lineno}"


def _scope(request: Any, log: ComponentLog) -> StepScope:
    step = request.step
    identity = StepIdentity(**{name: getattr(step, name) for name in StepIdentity.__dataclass_fields__})
    try:
        config = msgspec.json.decode(request.config_json or "{}", type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise DefinitionError(f"config_json: {error}") from error
    return StepScope(config, identity, asyncio.Event(), log, read_credentials(request.credentials_json))


def _schema(given: Any) -> dict[str, Any] | None:
    if given is None or isinstance(given, dict):
        return given
    return json_schema(given)


def _choices(found: Any) -> list[component_pb2.Choice]:
    items: Iterable[Any] = [Choice(*pair) for pair in found.items()] if isinstance(found, Mapping) else found
    choices = []
    for item in items:
        choice = item if isinstance(item, Choice) else Choice(item)
        label = choice.label or (choice.value if isinstance(choice.value, str) else _json_of(choice.value))
        choices.append(component_pb2.Choice(value_json=_json_of(choice.value), label=str(label)[:MAX_TEXT]))
        if len(choices) > MAX_CHOICES:
            raise ValueError(f"more than {MAX_CHOICES} choices")
    return choices


def _json(schema: dict[str, Any] | None) -> str:
    return _json_of(schema) if schema else ""


def _json_of(value: Any) -> str:
    return msgspec.json.encode(value).decode()
