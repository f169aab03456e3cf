"""Random and mutated input: messages filled at random by their descriptors, and bytes that were right once.

Everything comes from one `random.Random`, so that a seed repeats a run.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor as Field

EDGES_64 = (0, 1, 2, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**53, 2**63 - 1)
WORDS = (
    "", "a", "work", "default", "orders", "d1", "../..", "/", ".", "*", ">", "a.b", "x" * 64, "x" * 300, "é", "\x00",
    "\r\n", "{}", "[" * 2000, "NaN", "-1", "null", "\U0001f600", "%s%n", "'; --", "traceparent", "Nats-Msg-Id",
)  # fmt: skip
INTEGERS = (Field.CPPTYPE_INT32, Field.CPPTYPE_INT64, Field.CPPTYPE_UINT32, Field.CPPTYPE_UINT64)


def text(rng: random.Random) -> str:
    if rng.random() < 0.7:
        return rng.choice(WORDS)
    return "".join(
        chr(rng.choice((rng.randrange(32, 127), rng.randrange(1, 0xD800)))) for _ in range(rng.randrange(40))
    )


def blob(rng: random.Random, most: int = 200) -> bytes:
    return rng.randbytes(rng.randrange(most)) if rng.random() < 0.8 else text(rng).encode()


def scalar(field: Any, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind == Field.CPPTYPE_STRING:
        return blob(rng) if field.type == Field.TYPE_BYTES else text(rng)
    if kind == Field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if kind == Field.CPPTYPE_ENUM:
        return rng.choice([value.number for value in field.enum_type.values])
    if kind in (Field.CPPTYPE_DOUBLE, Field.CPPTYPE_FLOAT):
        return rng.choice((0.0, -1.0, 1e300, float("inf"), float("nan"), 0.5))
    value = rng.choice(EDGES_64) if rng.random() < 0.7 else rng.getrandbits(63)
    if kind in (Field.CPPTYPE_INT32, Field.CPPTYPE_UINT32):
        value %= 2**31
    if kind in (Field.CPPTYPE_INT32, Field.CPPTYPE_INT64) and rng.random() < 0.2:
        value = -value
    return value


def fill(
    message: Any, rng: random.Random, depth: int = 3, *, skip: float = 0.35, values: Callable[..., Any] = scalar
) -> Any:
    """Sets some of the fields, whatever they mean; answers the message. `skip`: how likely a field is left out;
    `values(field, rng)`: what a scalar field, or an item of one, is set to."""
    if message.DESCRIPTOR.full_name == "google.protobuf.Struct":
        json_format.ParseDict(json_object(rng), message)
        return message
    for field in message.DESCRIPTOR.fields:
        if rng.random() < skip:
            continue
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
            if value.message_type is None:
                for _ in range(rng.randrange(3)):
                    getattr(message, field.name)[values(key, rng)] = values(value, rng)
        elif field.is_repeated:
            target = getattr(message, field.name)
            for _ in range(rng.randrange(3)):
                if entry is None:
                    target.append(values(field, rng))
                elif depth:
                    fill(target.add(), rng, depth - 1, skip=skip, values=values)
        elif entry is not None:
            if depth:
                part = getattr(message, field.name)
                part.SetInParent()
                fill(part, rng, depth - 1, skip=skip, values=values)
        else:
            setattr(message, field.name, values(field, rng))
    return message


def json_object(rng: random.Random) -> dict[str, Any]:
    """Anything that JSON can say, and now and then far too deep."""
    if rng.random() < 0.05:
        nested: dict[str, Any] = {}
        for _ in range(rng.choice((20, 40))):
            nested = {"a": nested}
        return nested
    values = (
        None,
        True,
        0,
        -1.5,
        1e300,
        "",
        "text",
        [],
        [1, "two", {"three": None}],
        {},
        {"b": {"c": [[]]}},
        text(rng),
    )
    return {text(rng): rng.choice(values) for _ in range(rng.randrange(4))}


def mutated(raw: bytes, rng: random.Random) -> bytes:
    """The same bytes with a few changed, doubled, cut or put in."""
    data = bytearray(raw)
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0 if data:
                data[at % len(data)] = rng.randrange(256)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(8))
            case 3:
                data[at:at] = data[: rng.randrange(64)]
            case 4:
                data[at : at + rng.randrange(16)] = b""
            case _:
                data[at:at] = struct.pack("<Q", rng.choice(EDGES_64))
    return bytes(data)
