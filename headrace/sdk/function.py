"""A function or hook of a component: what it takes, how its input is decoded, its schemas."""

from __future__ import annotations

import inspect
import re
import typing
from collections.abc import Callable
from typing import Any

import msgspec

from headrace.sdk.body import Decode, body_decoder, json_schema
from headrace.sdk.context import Context
from headrace.sdk.errors import DefinitionError

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
_CONTEXT_NAMES = frozenset({"ctx", "context"})
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Function:
    """One function. `invoke(value, context)` calls it with the arguments it asked for."""

    def __init__(self, name: str, kind: str, target: Callable[..., Any]) -> None:
        if not _NAME.fullmatch(name):
            raise DefinitionError(f"function name {name!r}: use letters, digits, _ and -, a letter first")
        self.name = name
        self.kind = kind
        self.target = target
        # A decorator that keeps `__wrapped__` hides neither that the function is async nor what it takes.
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(target))
        self.decode: Decode | None = None
        self.in_type: Any = None
        self.out_type: Any = None
        self.in_schema: dict[str, Any] | None = None
        self.out_schema: dict[str, Any] | None = None
        self.invoke: Callable[[Any, Context], Any] = self._unresolved
        if inspect.isasyncgenfunction(target) or inspect.isgeneratorfunction(target):
            raise DefinitionError(f"function {name!r} is a generator: use `await ctx.emit(value)` in place of `yield`")

    def _unresolved(self, value: Any, context: Context) -> Any:
        raise AssertionError("resolve() first")

    def resolve(self) -> None:
        """Reads the annotations; DefinitionError if the signature or a type does not fit."""
        where = f"function {self.name!r}"
        value, context, hints = _arguments(self.target, where)
        target = self.target
        if self.kind == "listener":
            if value is not None or context is None:
                raise DefinitionError(f"{where} is a listener: it takes one argument, the Context")
            self.invoke = _keyword_free(target, context, None)
            return
        self.in_type = hints.get(value.name, Any) if value else None
        self.out_type = hints.get("return", Any)
        if value is not None:
            try:
                self.decode = body_decoder(self.in_type)
            except (TypeError, NameError, KeyError) as error:
                raise DefinitionError(f"{where}, parameter {value.name!r}: {error}") from error
        try:
            self.in_schema, self.out_schema = json_schema(self.in_type), json_schema(self.out_type)
        except (TypeError, NameError, KeyError) as error:
            raise DefinitionError(f"{where}: a type has no JSON Schema: {error}") from error
        self.invoke = _keyword_free(target, context, value)


class Hook:
    """A hook; it may take the configuration (or what else `takes` names of a Context), a Context, both or nothing."""

    def __init__(self, target: Callable[..., Any], takes: str = "config") -> None:
        self.target = target
        self.takes = takes
        self.is_async = inspect.iscoroutinefunction(inspect.unwrap(target))
        self._config_type: Any = Any
        self._takes_config = False
        self._invoke: Callable[[Any, Context], Any] | None = None

    def resolve(self) -> None:
        where = f"hook {getattr(self.target, '__name__', 'hook')!r}"
        value, context, hints = _arguments(self.target, where)
        self._takes_config = value is not None
        if value is not None:
            self._config_type = hints.get(value.name, Any)
        self._invoke = _keyword_free(self.target, context, value)

    def invoke(self, context: Context) -> Any:
        """Calls the hook (a coroutine if it is async); ValueError if the configuration does not fit its type."""
        assert self._invoke is not None, "resolve() first"
        value: Any = getattr(context, self.takes)
        if self._takes_config and self._config_type is not Any:
            try:
                value = msgspec.convert(dict(value), self._config_type)
            except msgspec.ValidationError as error:
                # What does not fit may be secret: the path is enough.
                why = error if self.takes == "config" else f"do not fit {_name(self._config_type)}{_path(error)}"
                raise ValueError(f"{self.takes}: {why}") from None
        return self._invoke(value, context)


def _name(kind: Any) -> str:
    return getattr(kind, "__name__", str(kind))


def _path(error: Exception) -> str:
    _, found, path = str(error).rpartition(" - at ")
    return f" at {path}" if found else ""


def _arguments(
    target: Callable[..., Any], where: str
) -> tuple[inspect.Parameter | None, inspect.Parameter | None, dict[str, Any]]:
    """The parameters for the value and for the context, and the annotations."""
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except Exception as error:
        raise DefinitionError(f"{where}: an annotation cannot be read: {error}") from error
    value: inspect.Parameter | None = None
    context: inspect.Parameter | None = None
    for parameter in inspect.signature(target).parameters.values():
        annotation = hints.get(parameter.name)
        if parameter.kind not in POSITIONAL:
            if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                raise DefinitionError(
                    f"{where}: parameter {parameter.name!r} is keyword-only; nothing is passed for it"
                )
            continue
        is_context = isinstance(annotation, type) and issubclass(annotation, Context)
        if is_context or (annotation is None and parameter.name in _CONTEXT_NAMES):
            if context is not None:
                raise DefinitionError(f"{where} takes two contexts")
            context = parameter
        elif value is None:
            value = parameter
        elif parameter.default is inspect.Parameter.empty:
            raise DefinitionError(
                f"{where}: parameter {parameter.name!r} is one too many; it gets the input and a Context"
            )
    return value, context, hints


def _keyword_free(
    target: Callable[..., Any], context: inspect.Parameter | None, value: inspect.Parameter | None
) -> Callable[[Any, Context], Any]:
    """A caller with (value, context) that hands over what the target asks for, in its order."""
    if value is not None and context is not None:
        names = list(inspect.signature(target).parameters)
        if names.index(value.name) < names.index(context.name):
            return target
        return lambda given, ctx: target(ctx, given)
    if value is not None:
        return lambda given, ctx: target(given)
    if context is not None:
        return lambda given, ctx: target(ctx)
    return lambda given, ctx: target()
