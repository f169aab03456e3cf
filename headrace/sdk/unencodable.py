"""Finds the part of a value that has no JSON, so that a refused output names what and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec

MAX_LOOKED_AT = 10_000
MAX_DEPTH = 200

_encode = msgspec.json.Encoder().encode
_CAUSES = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)


def unencodable_part(value: Any) -> str:
    """Path and cause of the first part that cannot be encoded, for example `[3].when: Encoding objects of type X is
    unsupported`; empty where none is found within 10 000 parts."""
    looked_at = 0
    open_parts: list[tuple[str, Any, tuple[int, ...]]] = [("", value, ())]
    while open_parts and looked_at < MAX_LOOKED_AT:
        path, part, above = open_parts.pop()
        looked_at += 1
        if id(part) in above:
            return f"{path or 'the value'}: contains itself"
        if len(above) >= MAX_DEPTH:
            return f"{path[:80]}...: nested deeper than {MAX_DEPTH} levels"
        if (cause := _bad_key(part)) is not None:
            return f"{path or 'the value'}: {cause}"
        inner = list(_inner(part))
        if inner:
            open_parts += [(path + step, child, (*above, id(part))) for step, child in reversed(inner)]
            continue
        try:
            _encode(part)
        except _CAUSES as error:
            return f"{path or 'the value'}: {error}"
    return ""


def _inner(part: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(part, dict):
        yield from ((f"[{key!r}]" if isinstance(key, str) else f"[{key}]", child) for key, child in part.items())
    elif isinstance(part, list | tuple | set | frozenset):
        yield from ((f"[{index}]", child) for index, child in enumerate(part))
    elif isinstance(part, msgspec.Struct):
        yield from ((f".{name}", getattr(part, name, None)) for name in part.__struct_fields__)
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
        yield from ((f".{field.name}", getattr(part, field.name, None)) for field in dataclasses.fields(part))


def _bad_key(part: Any) -> str | None:
    """Why one of a dict's keys has no JSON; None where all have."""
    if not isinstance(part, dict):
        return None
    for key in part:
        if type(key) is str:
            continue
        try:
            _encode({key: None})
        except _CAUSES as error:
            return f"key {str(key)[:80]!r}: {error}"
    return None
