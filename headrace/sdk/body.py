"""Bodies: bytes to values and back, by the types a function is annotated with.

`bytes` is the body as it is; `str` its text; anything else is JSON, decoded and checked by msgspec.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from headrace.sdk.unencodable import unencodable_part

JSON = "application/json"
OCTETS = "application/octet-stream"
TEXT = "text/plain; charset=utf-8"

Decode = Callable[[Any], Any]
_encode = msgspec.json.Encoder().encode


class UndecodableInput(Exception):
    """The body does not fit the function's type; the message names the field."""


class UnencodableOutput(Exception):
    """A value cannot become a body."""


def body_decoder(kind: Any) -> Decode:
    """Decodes a body into `kind`. The result raises UndecodableInput; TypeError for an unsupported type."""
    if kind is bytes:
        return _as_is
    if kind is str:
        return _as_text
    decode = msgspec.json.Decoder(kind).decode

    def decode_json(body: bytes) -> Any:
        try:
            return decode(body)
        except msgspec.ValidationError as error:
            raise UndecodableInput(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UndecodableInput(f"the body is not JSON: {error}") from error

    return decode_json


def _as_is(body: bytes) -> bytes:
    return body


def _as_text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError as error:
        raise UndecodableInput(f"the body is not UTF-8 text (byte {error.start})") from error


def encode_body(value: Any, content_type: str = "") -> tuple[bytes, str]:
    """Body and content type of a value; UnencodableOutput says why it has none."""
    if isinstance(value, bytes):
        body, default = value, OCTETS
    elif isinstance(value, (bytearray, memoryview)):
        body, default = bytes(value), OCTETS
    else:
        try:
            if isinstance(value, str) and not content_type.startswith(JSON):
                body, default = value.encode(), TEXT
            else:
                body, default = _encode(value), JSON
        except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as error:
            kind = type(value).__name__
            raise UnencodableOutput(f"{kind} cannot be encoded: {unencodable_part(value) or error}") from error
    return body, content_type or default


def json_schema(kind: Any) -> dict[str, Any] | None:
    """JSON Schema of a type; None where it says nothing (opaque, text, untyped)."""
    if kind in (bytes, str, Any, None, type(None), object):
        return None
    return msgspec.json.schema(kind)
