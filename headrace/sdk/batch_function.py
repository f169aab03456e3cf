"""A function that gets several messages at once: what it takes, and what it may answer."""

from __future__ import annotations

import collections.abc
import functools
import inspect
import operator
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from headrace.sdk.body import body_decoder, json_schema
from headrace.sdk.context import Context
from headrace.sdk.errors import DefinitionError
from headrace.sdk.function import POSITIONAL, Function

MAX_BATCH = 1_000
_CONTEXTS_NAMES = frozenset({"ctxs", "contexts"})
_LISTS = (list, collections.abc.Sequence)

Invoke = Callable[[list[Any], list[Context]], Any]


class BatchFunction(Function):
    """An action for up to `most` messages a call: `invoke_batch(values, contexts)` with one of each a message."""

    def __init__(self, name: str, target: Callable[..., Any], most: int) -> None:
        super().__init__(name, "action", target)
        if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= MAX_BATCH:
            raise DefinitionError(f"function {name!r}: max={most!r}: use 1 to {MAX_BATCH} messages")
        self.most = most
        self.invoke_batch: Invoke = _unresolved

    def resolve(self) -> None:
        """As for a Function; the annotations are those of lists."""
        where = f"function {self.name!r}"
        try:
            hints = typing.get_type_hints(self.target, include_extras=True)
        except Exception as error:
            raise DefinitionError(f"{where}: an annotation cannot be read: {error}") from error
        takes = _takes(self.target, hints, where)
        values = next((name for name, what in takes.items() if what == "values"), None)
        self.in_type = Any
        if values is not None and values in hints:
            self.in_type = _element(hints[values], f"{where}, parameter {values!r}")
        self.out_type = _answered(hints.get("return", Any), where)
        try:
            self.decode = body_decoder(self.in_type) if values is not None else None
            self.in_schema, self.out_schema = json_schema(self.in_type), json_schema(self.out_type)
        except (TypeError, NameError, KeyError) as error:
            raise DefinitionError(f"{where}: a type cannot be decoded, or has no JSON Schema: {error}") from error
        self.invoke_batch = _caller(self.target, list(takes.values()))


def _unresolved(values: list[Any], contexts: list[Context]) -> Any:
    raise AssertionError("resolve() first")


def _takes(target: Callable[..., Any], hints: dict[str, Any], where: str) -> dict[str, str]:
    """What each parameter gets: `values` or `contexts`."""
    takes: dict[str, str] = {}
    for name, parameter in inspect.signature(target).parameters.items():
        hint = hints.get(name)
        if isinstance(hint, type) and issubclass(hint, Context):
            raise DefinitionError(f"{where}, parameter {name!r}: a batch has a Context for each message: list[Context]")
        inside = typing.get_args(hint)
        of_contexts = len(inside) == 1 and isinstance(inside[0], type) and issubclass(inside[0], Context)
        what = "contexts" if of_contexts or (hint is None and name in _CONTEXTS_NAMES) else "values"
        if parameter.kind not in POSITIONAL:
            if parameter.default is inspect.Parameter.empty and parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                raise DefinitionError(f"{where}: parameter {name!r} is keyword-only; nothing is passed for it")
        elif what not in takes.values():
            takes[name] = what
        elif parameter.default is inspect.Parameter.empty:
            raise DefinitionError(f"{where}: parameter {name!r} is one too many; it gets inputs and their Contexts")
    return takes


def _element(hint: Any, where: str) -> Any:
    """What a list is of."""
    if hint is Any:
        return Any
    if hint in _LISTS:
        return Any
    if typing.get_origin(hint) in _LISTS:
        return typing.get_args(hint)[0]
    raise DefinitionError(f"{where}: a batch comes as a list: annotate it as list[...] of what one message is")


def _answered(hint: Any, where: str) -> Any:
    """What one message's entry is; errors, which stand for themselves, left out."""
    if hint in (Any, None, type(None)):
        return hint
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    lists = [part for part in (typing.get_args(hint) if union else (hint,)) if part is not type(None)]
    if len(lists) != 1:
        raise DefinitionError(f"{where} answers None, or a list with an entry for each message")
    entry = _element(lists[0], f"{where}, what it answers")
    if typing.get_origin(entry) in (typing.Union, types.UnionType):
        kept = [part for part in typing.get_args(entry) if not _is_error(part)]
        return functools.reduce(operator.or_, kept) if kept else None
    return None if _is_error(entry) else entry


def _is_error(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


def _caller(target: Callable[..., Any], takes: Sequence[str]) -> Invoke:
    """A caller with (values, contexts) that hands over what the target asks for, in its order."""
    match takes:
        case ["values", "contexts"]:
            return target
        case ["contexts", "values"]:
            return lambda values, contexts: target(contexts, values)
        case ["values"]:
            return lambda values, contexts: target(values)
        case ["contexts"]:
            return lambda values, contexts: target(contexts)
        case _:
            return lambda values, contexts: target()
