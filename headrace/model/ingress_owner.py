"""Who owns the ingress, on a broker cluster: said by the flow's own stream, in the order of its log.

Servers of a cluster apply a stream's subject transform each by itself, at the moment at which each learns of it, so
there the transform decides nothing: copies would differ. Instead the stream keeps `1 + FENCES` messages,
`in._owner.0` to `in._owner.<FENCES>`, written as one atomic batch, so that their sequences follow each other. Number 0
says who the owner is; it is written by compare-and-set on itself. Whoever publishes to the ingress publishes to the
owner's own subject, on condition that one of the others, its *fence*, is still the one it knows. The stream's leader
checks that in the order of the log, so that nothing is stored for an owner after the next one was written.

There are several fences because a server lets one publish with the same condition be under way at a time.
"""

from __future__ import annotations

import msgspec

FENCES = 64


class IngressOwner(msgspec.Struct, frozen=True):
    """`owner` is `d7`, `p2`, or empty where nothing is taken. `generation` is that of the decision in the flow's
    document: a decision is never replaced by an earlier one."""

    owner: str = ""
    generation: int = 0


NOBODY = IngressOwner()
"""Where nothing is written yet, or any more."""


def is_fenced(copies: int) -> bool:
    """Whether the ingress of a stream with that many copies is decided in the stream itself."""
    return copies > 1


def encode_owner(owner: IngressOwner) -> bytes:
    return msgspec.json.encode(owner)


def decode_owner(raw: bytes) -> IngressOwner:
    """msgspec.DecodeError for anything else."""
    return msgspec.json.decode(raw, type=IngressOwner)
