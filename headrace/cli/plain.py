"""Protos as plain data for `--json`: snake_case names, numbers as numbers, enum words without their prefix."""

from __future__ import annotations

from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

_WELL_KNOWN = "google.protobuf."


def plain(message: Message) -> Any:
    """`FLOW_STATE_RUNNING` becomes `RUNNING`; unset messages are left out; timestamps are RFC 3339 text."""
    if message.DESCRIPTOR.full_name.startswith(_WELL_KNOWN):
        return json_format.MessageToDict(message)
    facts: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        if field.has_presence and not message.HasField(field.name):
            continue
        facts[field.name] = _field(field, getattr(message, field.name))
    return facts


def enum_word(kind: Any, number: int) -> str:
    """The word of an enum value without the enum's own name: `RUNNING`."""
    names: dict[int, str] = {value.number: value.name for value in kind.values}
    zero = names.get(0, "")
    return names.get(number, str(number)).removeprefix(zero.removesuffix("UNSPECIFIED"))


def _field(field: Any, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        kind = field.message_type.fields_by_name["value"]
        return {key: _single(kind, item) for key, item in value.items()}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return plain(value)
    if field.enum_type is not None:
        return enum_word(field.enum_type, value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value
