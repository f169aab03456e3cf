"""What a person makes of a dead letter's message before it is sent again. The original is never touched."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from headrace.model.errors import InvalidInput
from headrace.model.json_values import check_json_body
from headrace.model.limits import MAX_BODY_BYTES, MAX_HEADERS_BYTES

MAX_CONTENT_TYPE = 200
NAME = "abcdefghijklmnopqrstuvwxyz0123456789-_.!#$%&'*+^`|~"


class LetterEdit(msgspec.Struct, frozen=True):
    """`of` and `given_up_ns` say which letter it is of: numbers begin anew in a flow that is made again."""

    of: str
    given_up_ns: int
    body: bytes
    content_type: str
    headers: dict[str, str]
    editor: str
    at: float
    """Unix seconds."""

    def belongs_to(self, message_id: str, given_up_ns: int) -> bool:
        return (self.of, self.given_up_ns) == (message_id, given_up_ns)


def check_message(body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
    """InvalidInput for what a step could not get: too large, JSON that is none, headers with a line end."""
    if len(body) > MAX_BODY_BYTES:
        raise InvalidInput.at("body", f"{len(body)} bytes", f"is more than {MAX_BODY_BYTES} bytes")
    if len(content_type) > MAX_CONTENT_TYPE or not content_type.isprintable():
        raise InvalidInput.at("content_type", content_type, "is not a media type", next_step="Use application/json")
    check_json_body("body", content_type, body)
    size = 0
    for name, value in headers.items():
        if not name or any(letter not in NAME for letter in name):
            raise InvalidInput.at("headers", name, "is not the name of a header", next_step="Use a-z, 0-9 and -")
        if "\r" in value or "\n" in value or "\0" in value:
            raise InvalidInput.at(f"headers.{name}", value, "has a line end", next_step="Write it in one line")
        size += len(name) + len(value.encode())
    if size > MAX_HEADERS_BYTES:
        raise InvalidInput.at("headers", f"{size} bytes", f"are more than {MAX_HEADERS_BYTES} bytes")


def changed_headers(before: Mapping[str, str], changes: Mapping[str, str]) -> dict[str, str]:
    """With `changes` set; an empty value takes a header away. Names in lower case."""
    after = dict(before) | {name.lower(): value for name, value in changes.items()}
    return {name: value for name, value in after.items() if value}
