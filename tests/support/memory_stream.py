"""What the broker in memory keeps: streams, messages, consumers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.memory_bucket import matches


@dataclass(frozen=True, slots=True)
class Answer:
    data: bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """One stored message."""

    sequence: int
    subject: str
    payload: bytes
    message_id: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Consumer:
    """A durable. `cursor`: messages below it were delivered once (or are not its own)."""

    config: dict[str, Any]
    paused: bool
    cursor: int = 1
    # Sequence to the time at which it is delivered again.
    unacked: dict[int, float] = field(default_factory=dict)
    deliveries: dict[int, int] = field(default_factory=dict)
    # Deliveries in all since it was begun (anew): the number that each has among them.
    delivered: int = 0

    def filters(self) -> list[str]:
        several = self.config.get("filter_subjects")
        return list(several) if several else [str(self.config.get("filter_subject", ">"))]

    def takes(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.filters())


@dataclass
class Stream:
    """A work-queue stream."""

    config: dict[str, Any]
    messages: dict[int, Stored] = field(default_factory=dict)
    last: int = 0
    ids: dict[str, tuple[int, float]] = field(default_factory=dict)
    consumers: dict[str, Consumer] = field(default_factory=dict)

    def lists(self, subject: str) -> bool:
        return any(matches(pattern, subject) for pattern in self.config["subjects"])

    def transformed(self, subject: str) -> str:
        transform = self.config.get("subject_transform")
        if not transform or not matches(transform["src"], subject):
            return subject
        wild = [
            part for token, part in zip(transform["src"].split("."), subject.split("."), strict=True) if token == "*"
        ]
        result = str(transform["dest"])
        for index, part in enumerate(wild, 1):
            result = result.replace(f"{{{{wildcard({index})}}}}", part)
        return result
