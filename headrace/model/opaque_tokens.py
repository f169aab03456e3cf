"""Tokens that a client gives back unchanged: where a list or a watch goes on. Opaque, and checked when they return.

A token is of one `kind`: the list (with its parent and filters) or the watch that gave it out. Given to another one,
or altered, it is refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from headrace.model.errors import InvalidInput

_CHECK_BYTES = 6
LONGEST = 1_000


def make_token(kind: str, *parts: str) -> str:
    """A token that `read_token` of the same kind turns back into the parts."""
    content = "\n".join(parts).encode()
    return base64.urlsafe_b64encode(_check(kind, content) + content).decode().rstrip("=")


def read_token(field: str, kind: str, token: str, parts: int) -> tuple[str, ...]:
    """What `make_token` was given; InvalidInput BAD_TOKEN for anything else."""
    found: list[str] = []
    try:
        if len(token) <= LONGEST and token.isascii():
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
            content = raw[_CHECK_BYTES:]
            if raw[:_CHECK_BYTES] == _check(kind, content):
                found = content.decode().split("\n")
    except (ValueError, binascii.Error):
        found = []
    if len(found) != parts:
        raise InvalidInput.at(
            field,
            token,
            f"was not given out for {kind}",
            reason="BAD_TOKEN",
            next_step=f"Give it back unchanged with the same other fields, or leave {field} empty to begin anew",
        )
    return tuple(found)


def _check(kind: str, content: bytes) -> bytes:
    return hashlib.sha256(kind.encode(errors="replace") + b"\0" + content).digest()[:_CHECK_BYTES]
