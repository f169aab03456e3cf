"""Credentials as they are kept: what everybody may know (the head), and the value, sealed.

The head says name, versions and names of fields. A version's value is stored encrypted under a key that the store does
not hold; the encryption binds workspace, name and version, so that a sealed value moved to another place does not open.
A deployment refers to a name and a version, and marks that version as used before it does.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from headrace.model.errors import InvalidInput
from headrace.model.json_values import is_nested_deeper

MAX_VALUE_BYTES = 64 * 1024
MAX_FIELDS = 100
MAX_NESTING = 10
MAX_DESCRIPTION = 1_000
EXACT_NUMBERS = 2**53
_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,63}")


class CredentialHead(msgspec.Struct, frozen=True):
    """What is known of a credential; Unix seconds. `version` is the newest one, `next_version` never goes back.

    `deleting`: nobody begins to use it any more. `edit` is the etag; `requests` has marks of the newest calls.
    """

    name: str
    version: int
    fields: tuple[str, ...]
    created_at: float
    updated_at: float
    description: str = ""
    expires_at: float = 0.0
    deleting: bool = False
    edit: int = 1
    requests: tuple[str, ...] = ()

    def expired(self, now: float) -> bool:
        """Whether its time is over at `now`."""
        return bool(self.expires_at) and self.expires_at <= now


class SealedValue(msgspec.Struct, frozen=True):
    """An encrypted value: with which key (its id), nonce, and ciphertext with tag."""

    key_id: str
    nonce: bytes
    ciphertext: bytes


class CredentialRef(msgspec.Struct, frozen=True):
    """What a deployment's document says of a step's credential: its name and the version that was newest then."""

    name: str
    version: int


def bound_to(workspace: str, name: str, version: int) -> bytes:
    """Associated data of a sealed value: it opens only as what it was sealed as."""
    return f"headrace credential\n{workspace}\n{name}\n{version}".encode()


def check_value(value: Mapping[str, Any]) -> bytes:
    """The value as JSON text; InvalidInput, which never shows any of it, where it is none that can be kept."""
    if not value:
        raise _refused("has no field", 'Give a JSON object such as {"user": "…", "password": "…"}')
    if len(value) > MAX_FIELDS:
        raise _refused(f"has {len(value)} fields, more than {MAX_FIELDS}", "Split it")
    for name in value:
        if not isinstance(name, str) or not _FIELD.fullmatch(name):
            raise _refused(
                "has a field whose name is none", "Letters, digits and _ . - after a letter or _, at most 64 characters"
            )
    if is_nested_deeper(dict(value), MAX_NESTING):
        raise _refused(f"is nested deeper than {MAX_NESTING} levels", "Give a flatter object")
    raw = msgspec.json.encode(value)
    if len(raw) > MAX_VALUE_BYTES:
        raise _refused(
            f"has {len(raw)} bytes as JSON, more than {MAX_VALUE_BYTES}", "Keep only what is secret", "VALUE_TOO_LARGE"
        )
    return raw


def _refused(problem: str, next_step: str, reason: str = "BAD_CREDENTIAL") -> InvalidInput:
    return InvalidInput.at("credential.value", "***", problem, next_step=next_step, reason=reason)


def inexact_field(value: Any, path: str = "") -> str:
    """Path of the first whole number that would not arrive exactly (numbers travel as doubles); empty for none."""
    if isinstance(value, Mapping):
        found = (inexact_field(inner, f"{path}.{name}" if path else str(name)) for name, inner in value.items())
        return next((place for place in found if place), "")
    if isinstance(value, list | tuple):
        found = (inexact_field(inner, f"{path}[{index}]") for index, inner in enumerate(value))
        return next((place for place in found if place), "")
    return path if isinstance(value, int) and abs(value) >= EXACT_NUMBERS else ""


def leaf_texts(value: Any) -> list[str]:
    """Every text and number in a value, at any depth: what must never be shown."""
    if isinstance(value, Mapping):
        return [text for inner in value.values() for text in leaf_texts(inner)]
    if isinstance(value, list | tuple):
        return [text for inner in value for text in leaf_texts(inner)]
    if isinstance(value, bool) or value is None:
        return []
    return [str(value)]


def credential_key(name: str) -> str:
    """Key of a head in the bucket of credentials (`bucket_names.credential_bucket`)."""
    return f"head.{name}"


def sealed_key(name: str, version: int) -> str:
    """A version's encrypted value."""
    return f"value.{name}.{version}"


def credential_use_key(name: str, version: int, flow: str, holder: str) -> str:
    """That a deployment (`d3`) of a flow uses a version."""
    return f"use.{name}.{version}.{flow}.{holder}"
