"""Messages as the JSON text that grpcurl prints: names as in the proto, 64-bit numbers as text, two blanks a level."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

_LONG = {
    FieldDescriptor.TYPE_INT64,
    FieldDescriptor.TYPE_UINT64,
    FieldDescriptor.TYPE_FIXED64,
    FieldDescriptor.TYPE_SFIXED64,
    FieldDescriptor.TYPE_SINT64,
}
_ANY = "google.protobuf.Any"
_WELL_KNOWN = "google.protobuf."
_ESCAPED = re.compile("[<>&\u2028\u2029]")

NewMessage = Callable[[str], Message | None]
"""An empty message of a full name; None where it is not known."""


class JsonWriter:
    """Writes messages; `new_message` finds what an Any holds."""

    def __init__(self, new_message: NewMessage, *, defaults: bool = False) -> None:
        """With `defaults` fields that have their default are written too."""
        self._new_message = new_message
        self._defaults = defaults

    def text(self, message: Message) -> str:
        return as_text(self.facts(message))

    def facts(self, message: Message) -> Any:
        """As plain data, in the order of field numbers."""
        kind = message.DESCRIPTOR.full_name
        if kind == _ANY:
            return self._any(message)
        if kind.startswith(_WELL_KNOWN):
            return json_format.MessageToDict(message)
        facts: dict[str, Any] = {}
        fields: list[Any] = sorted(message.DESCRIPTOR.fields, key=lambda item: int(item.number))
        for field in fields:
            if message.HasField(field.name) if field.has_presence else getattr(message, field.name):
                facts[field.name] = self._value(field, getattr(message, field.name))
            elif self._defaults and field.containing_oneof is None:
                single = field.message_type is not None and not field.is_repeated
                facts[field.name] = None if single else self._value(field, getattr(message, field.name))
        return facts

    def _value(self, field: Any, value: Any) -> Any:
        kind = field.message_type
        if kind is not None and kind.GetOptions().map_entry:
            item = kind.fields_by_name["value"]
            return {_key(key): self._single(item, value[key]) for key in sorted(value)}
        if field.is_repeated:
            return [self._single(field, item) for item in value]
        return self._single(field, value)

    def _single(self, field: Any, value: Any) -> Any:
        if field.message_type is not None:
            return self.facts(value)
        if field.enum_type is not None:
            found = field.enum_type.values_by_number.get(value)
            return found.name if found is not None else value
        if field.type in _LONG:
            return str(value)
        if isinstance(value, bytes):
            return base64.b64encode(value).decode()
        if isinstance(value, float):
            return _number(value)
        return value

    def _any(self, message: Any) -> Any:
        name = message.type_url.rpartition("/")[2]
        inside = self._new_message(name)
        try:
            if inside is None:
                raise DecodeError
            inside.ParseFromString(message.value)
        except DecodeError:
            raw = base64.b64encode(message.value).decode()
            return {"@type": message.type_url, "@error": f"{name} is not recognized", "@value": raw}
        facts = self.facts(inside)
        if name.startswith(_WELL_KNOWN):
            return {"@type": message.type_url, "value": facts}
        return {"@type": message.type_url, **dict(sorted(facts.items()))}


def as_text(facts: Any) -> str:
    """JSON as Go writes it."""
    text = json.dumps(facts, ensure_ascii=False, indent=2)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _key(key: Any) -> str:
    return str(key).lower() if isinstance(key, bool) else str(key)


def _number(value: float) -> Any:
    """Whole numbers without a point, as Go does."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "Infinity" if value > 0 else "-Infinity"
    return int(value) if value.is_integer() and abs(value) < 1e15 else value
