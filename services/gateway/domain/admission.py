"""How much may be in work at once: requests and the bytes of their bodies."""

from __future__ import annotations

from dataclasses import dataclass

from services.gateway.domain import refusals


@dataclass(slots=True)
class Admission:
    """Counts what is in work; raises Refusal 429 past a limit. Whoever enters leaves, with the same bytes."""

    max_requests: int = 2_000
    max_bytes: int = 128 * 1024 * 1024
    requests: int = 0
    bytes: int = 0
    refused: int = 0

    def enter(self) -> None:
        if self.requests >= self.max_requests:
            self.refused += 1
            raise refusals.gateway_full("requests", self.max_requests)
        self.requests += 1

    def take(self, count: int) -> None:
        """Room for `count` more bytes of a request that has entered."""
        if self.bytes + count > self.max_bytes:
            self.refused += 1
            raise refusals.gateway_full("bytes of bodies", self.max_bytes)
        self.bytes += count

    def leave(self, taken_bytes: int) -> None:
        self.requests -= 1
        self.bytes -= taken_bytes
