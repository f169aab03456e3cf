"""What happened to each stimulus, and how messages tell which they are of."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.model import subjects
from headrace.wire.envelope import decode_envelope
from tests.support.memory_stream import Stored


@dataclass
class Ledger:
    """What happened to each stimulus, by its number."""

    attempted: set[int] = field(default_factory=set)
    accepted: set[int] = field(default_factory=set)
    done: dict[int, int] = field(default_factory=dict)
    dead: set[int] = field(default_factory=set)
    dropped: set[int] = field(default_factory=set)
    # By number and incarnation (a message that was moved has a new one).
    deployments: dict[tuple[int, int], set[int]] = field(default_factory=dict)


def number_of(message: Stored) -> int:
    return int(decode_envelope(message.payload).body)


def key_of(message: Stored) -> str:
    return decode_envelope(message.payload).headers["key"]


def is_ours(subject: str) -> bool:
    """A barrier, or what says who owns the ingress: no message of anybody."""
    return subjects.parse_data_subject(subject).step.startswith("_")
