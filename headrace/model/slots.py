"""Keys and slots: which slot of a keyed step a message belongs to, decided by whoever sends it.

A step's `key` is `header:NAME` (any case) or `body:/json/pointer` (RFC 6901). The slot is FNV-1a-32 of the key's
UTF-8 bytes modulo the number of slots, as the broker's own `partition` counts. A message without a value for the
key, and every message of an `exactly_once` step without `key`, takes the slot of its message id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.model.errors import InvalidInput

DEFAULT_SLOTS = 8
MAX_SLOTS = 64
# A longer key counts by its beginning: hashing it whole would hold up its sender.
MAX_KEY_BYTES = 1024

HEADER_PATTERN = r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}"
_HEADER = re.compile(HEADER_PATTERN)
_BAD_ESCAPE = re.compile(r"~(?![01])")
_INDEX = re.compile(r"0|[1-9][0-9]{0,8}")
_FNV_OFFSET = 2166136261
_FNV_PRIME = 16777619
_NEXT_STEP = "Write `header:NAME` or `body:/json/pointer`"


@dataclass(frozen=True, slots=True)
class KeySource:
    """Where a key is read: the header of that (lower-case) name or, where that is empty, the pointer's tokens."""

    header: str
    pointer: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """Slot and key of one message; `keyless` when the step has a key, and the message no value for it."""

    slot: int
    key: str
    keyless: bool = False


@dataclass(frozen=True, slots=True)
class Keying:
    """How messages to one step are placed; an unkeyed step has no source and one slot."""

    source: KeySource | None = None
    slots: int = 1

    def place(self, headers: Mapping[str, str], body: bytes, message_id: str) -> Placement:
        """The slot of a message to this step; its id stands in where it has no key."""
        key = key_of(self.source, headers, body) if self.source is not None else None
        if key is None:
            key, keyless = message_id, self.source is not None
        else:
            keyless = False
        return Placement(slot_of(key, self.slots), key, keyless)


UNKEYED = Keying()


def keying(key: str, slots: int) -> Keying:
    """The placing rule of a step with this `key` (empty: none) and so many slots."""
    if not key and slots == 1:
        return UNKEYED
    return Keying(parse_key(key) if key else None, slots)


def parse_key(text: str) -> KeySource:
    """Reads `header:NAME` or `body:/json/pointer`; InvalidInput otherwise."""
    return check_key("key", text)


def check_key(field: str, text: str) -> KeySource:
    """Reads `header:NAME` or `body:/json/pointer`; InvalidInput that names the field otherwise."""
    kind, _, rest = text.partition(":")
    if kind == "header":
        if not _HEADER.fullmatch(rest):
            raise InvalidInput.at(field, text, "does not name a header", next_step=_NEXT_STEP, reason="BAD_KEY")
        return KeySource(rest.lower())
    if kind == "body":
        if not rest.startswith("/") or _BAD_ESCAPE.search(rest) or len(rest) > MAX_KEY_BYTES:
            raise InvalidInput.at(
                field, text, "is not a JSON pointer into the body", next_step=_NEXT_STEP, reason="BAD_KEY"
            )
        return KeySource("", tuple(token.replace("~1", "/").replace("~0", "~") for token in rest[1:].split("/")))
    raise InvalidInput.at(field, text, "is not a key", next_step=_NEXT_STEP, reason="BAD_KEY")


def key_of(source: KeySource, headers: Mapping[str, str], body: bytes) -> str | None:
    """A message's key as text; None where header or pointer is absent, or the body is not JSON.

    Only a text, number or boolean is a key: null, objects and lists count as absent. Whole numbers have one
    text (`1` and `1.0` are one key).
    """
    if source.header:
        value = headers.get(source.header)
        if value is None:
            value = next((text for name, text in headers.items() if name.lower() == source.header), None)
        return value or None
    try:
        return _as_key(_walk(msgspec.json.decode(body), source.pointer))
    except (msgspec.MsgspecError, ValueError, RecursionError, LookupError):
        return None


def slot_of(key: str, slots: int) -> int:
    """FNV-1a-32 of the key modulo `slots`."""
    if slots == 1:
        return 0
    value = _FNV_OFFSET
    for byte in key.encode("utf-8", "surrogatepass")[:MAX_KEY_BYTES]:
        value = ((value ^ byte) * _FNV_PRIME) & 0xFFFFFFFF
    return value % slots


def _walk(value: Any, pointer: tuple[str, ...]) -> Any:
    for token in pointer:
        if isinstance(value, dict):
            value = value[token]
        elif isinstance(value, list) and _INDEX.fullmatch(token):
            value = value[int(token)]
        else:
            raise LookupError(token)
    return value


def _as_key(value: Any) -> str | None:
    if isinstance(value, str):
        return value or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        whole = isinstance(value, float) and value.is_integer() and abs(value) < 2**53
        return str(int(value)) if whole else str(value)
    return None
