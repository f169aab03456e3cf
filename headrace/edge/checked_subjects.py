"""Subjects that may stand in a line of the NATS protocol, remembered as they are written."""

from __future__ import annotations

MAX_KEPT = 4096


class CheckedSubjects:
    """Of one connection: a sidecar has few, an ingress some hundred."""

    def __init__(self) -> None:
        self._raw: dict[str, bytes] = {}

    def raw(self, subject: str) -> bytes:
        """As it is written; ValueError for what would end the line early."""
        return self._raw.get(subject) or self._check(subject)

    def _check(self, subject: str) -> bytes:
        if not subject or not subject.isprintable() or " " in subject:
            raise ValueError(f"subject: {subject!r} cannot be published to")
        if len(self._raw) >= MAX_KEPT:
            self._raw.clear()
        known = self._raw[subject] = subject.encode()
        return known
