"""Protobuf fields of OTLP by hand: what does not change is encoded once and spliced (opentelemetry/proto/trace/v1)."""

from __future__ import annotations

from struct import Struct

SEMANTIC_CONVENTIONS = "1.44.0"
"""The version of the OpenTelemetry semantic conventions that attributes follow; named here only."""
SCHEMA_URL = f"https://opentelemetry.io/schemas/{SEMANTIC_CONVENTIONS}"

Value = str | bool | int | float

_DOUBLE = Struct("<Bd")
_FIXED64 = Struct("<BQ")
_MASK64 = (1 << 64) - 1


def varint(number: int) -> bytes:
    """Of a number from 0 on; a negative one as its 64-bit two's complement."""
    number &= _MASK64
    if number < 0x80:
        return bytes((number,))
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


_LENGTHS = tuple(varint(number) for number in range(4_096))


def length(number: int) -> bytes:
    """`varint`, from a table where it is small."""
    return _LENGTHS[number] if number < 4_096 else varint(number)


def block(field: int, content: bytes) -> bytes:
    """A length-delimited field."""
    return b"%b%b%b" % (varint(field << 3 | 2), length(len(content)), content)


def text(field: int, value: str) -> bytes:
    """A string field; what is no Unicode (a lone surrogate) is replaced."""
    return block(field, value.encode("utf-8", "replace"))


def fixed64(field: int, value: int) -> bytes:
    return _FIXED64.pack(field << 3 | 1, value & _MASK64)


def attribute(key: str, value: Value, *, field: int = 9) -> bytes:
    """A KeyValue under the field of attributes: 9 in a Span, 3 in an Event, 1 in a Resource."""
    if isinstance(value, bool):
        content = b"\x10\x01" if value else b"\x10\x00"
    elif isinstance(value, int):
        content = b"\x18" + varint(value)
    elif isinstance(value, float):
        content = _DOUBLE.pack(0x21, value)
    else:
        content = text(1, value)
    return block(field, text(1, key) + block(2, content))


def attributes(pairs: dict[str, Value], *, field: int = 9) -> bytes:
    """Several; empty texts are left out."""
    return b"".join(attribute(key, value, field=field) for key, value in pairs.items() if value != "")


def id_attribute_prefix(key: str) -> bytes:
    """All of a Span's attribute but its value, which has 32 bytes of ASCII."""
    return attribute(key, "0" * 32)[:-32]


def event(name: str, at_unix_ns: int, pairs: dict[str, Value]) -> bytes:
    """A Span's event."""
    return block(11, fixed64(1, at_unix_ns) + text(2, name) + attributes(pairs, field=3))


def link(trace_id: bytes, span_id: bytes) -> bytes:
    """A Span's link."""
    return block(13, block(1, trace_id) + block(2, span_id))


def error_status(message: str) -> bytes:
    """A Span's status: ERROR."""
    return block(15, text(2, message) + b"\x18\x02")


def resource_prefix(pairs: dict[str, Value]) -> bytes:
    """The Resource of a ResourceSpans (or ResourceLogs: the fields are the same)."""
    return block(1, attributes(pairs, field=1))


def rejected_items(answer: bytes) -> int:
    """Of an Export...ServiceResponse: `partial_success.rejected_...`; 0 where it is not there or makes no sense."""
    if len(answer) < 4 or answer[0] != 0x0A or answer[2] != 0x08:
        return 0
    number = shift = 0
    for byte in answer[3:13]:
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number
        shift += 7
    return 0
