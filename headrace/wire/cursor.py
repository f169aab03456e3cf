"""What the owner of a slot stores, with its outputs, about how far it is."""

from __future__ import annotations

import msgspec


class Cursor(msgspec.Struct, frozen=True):
    """Everything of the slot up to stream sequence `through` is done. `holder` is the process that wrote it, which
    counts its batches in `number`; `generation` is that of its lease."""

    through: int = 0
    generation: int = 0
    holder: str = ""
    number: int = 0


def encode_cursor(cursor: Cursor) -> bytes:
    return msgspec.json.encode(cursor)


def decode_cursor(raw: bytes) -> Cursor:
    """The cursor; ValueError if it is none."""
    try:
        return msgspec.json.decode(raw, type=Cursor)
    except msgspec.MsgspecError as error:
        raise ValueError(f"not a cursor: {raw[:120]!r}") from error
