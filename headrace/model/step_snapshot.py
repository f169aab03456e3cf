"""The state that a step keeps between messages: its bounds, and what saving does to it. Pure.

A plain step has one; a step with `key` has one for each key. It belongs to flow and step, not to a deployment: the
next version goes on with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

import msgspec

MAX_SNAPSHOT_BYTES = 64 * 1024
MAX_SAVES = 100
"""In one call."""
MAX_APPLIED = 256
"""Messages whose saving is remembered, newest last: one of them that comes again is done."""
PLAIN, ANY = 0, 1
_FIRST_KEY = 2


class SnapshotError(ValueError):
    """Why a save is refused. `conflict`: somebody else saved meanwhile; another attempt may succeed."""

    def __init__(self, text: str, *, conflict: bool = False) -> None:
        super().__init__(text)
        self.conflict = conflict


class Save(msgspec.Struct, frozen=True):
    """One save: JSON text that replaces the state, or an object whose fields are merged into it; with
    `if_revision` only while that is the state's revision (0: none is kept yet)."""

    json: bytes
    merge: bool = False
    if_revision: int | None = None


class StepSnapshot(msgspec.Struct, frozen=True):
    """`value` is JSON text; `revision` counts saves, from 1. `deployment`, `version` and `code` (digest of the
    revision) saved it last, at `at_unix_ns`, for message `message_id`."""

    value: msgspec.Raw = msgspec.Raw(b"null")
    revision: int = 0
    key: str = ""
    at_unix_ns: int = 0
    deployment: int = 0
    version: int = 0
    code: str = ""
    message_id: str = ""
    applied: tuple[str, ...] = ()


def snapshot_number(key: str) -> int:
    """What stands for a key where its snapshot is stored: keys never enter subjects."""
    return int.from_bytes(sha256(key.encode("utf-8", "surrogatepass")).digest()[:7], "big") + _FIRST_KEY


def saved(before: StepSnapshot, saves: Sequence[Save]) -> StepSnapshot:
    """The state after the saves of one call; SnapshotError if it may not be, and then nothing of them counts."""
    value, revision = bytes(before.value), before.revision
    for save in saves:
        if save.if_revision is not None and save.if_revision != revision:
            text = f"the snapshot was to be saved over revision {save.if_revision}, and is at revision {revision}"
            raise SnapshotError(text, conflict=True)
        value = _merged(value, save.json) if save.merge else _checked(save.json)
        revision += 1
        if len(value) > MAX_SNAPSHOT_BYTES:
            raise SnapshotError(f"the snapshot has {len(value)} bytes, more than {MAX_SNAPSHOT_BYTES}")
    return msgspec.structs.replace(before, value=msgspec.Raw(value), revision=revision)


def _checked(raw: bytes) -> bytes:
    if len(raw) > MAX_SNAPSHOT_BYTES:
        raise SnapshotError(f"the snapshot has {len(raw)} bytes, more than {MAX_SNAPSHOT_BYTES}")
    try:
        msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SnapshotError(f"the snapshot is not JSON: {error}") from None
    return raw


def _merged(before: bytes, raw: bytes) -> bytes:
    kept, fields = msgspec.json.decode(before), msgspec.json.decode(_checked(raw))
    if not isinstance(fields, dict) or not isinstance(kept, dict | None):
        what = "what is kept" if isinstance(fields, dict) else "what is saved"
        raise SnapshotError(f"only objects can be merged, and {what} is none")
    return msgspec.json.encode({**(kept or {}), **fields})


def noted(after: StepSnapshot, *, message_id: str) -> StepSnapshot:
    """Remembers which message it was saved for."""
    applied = (*after.applied, message_id)[-MAX_APPLIED:]
    return msgspec.structs.replace(after, message_id=message_id, applied=applied)


def encode_snapshot(snapshot: StepSnapshot) -> bytes:
    return msgspec.json.encode(snapshot)


def decode_snapshot(raw: bytes) -> StepSnapshot:
    """ValueError if it is none."""
    try:
        return msgspec.json.decode(raw, type=StepSnapshot)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a snapshot: {raw[:120]!r}") from error
