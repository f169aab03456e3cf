"""How much may be in work at once, requests and the bytes of their bodies, of all flows and of each."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.gateway.domain import refusals

SHARE = 3
"""A flow may hold so many times what is free. One alone gets three quarters of the room; two that take all they can
get three sevenths each; and whoever comes new always finds some."""


@dataclass(slots=True)
class FlowUse:
    """What one flow holds."""

    requests: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Admission:
    """Counts what is in work; raises Refusal 429 past a limit. Whoever enters leaves, with the same bytes.

    A flow whose callers all wait, or send slowly, leaves room for the others (`SHARE`).
    """

    max_requests: int = 2_000
    max_bytes: int = 128 * 1024 * 1024
    what: str = "requests"
    requests: int = 0
    bytes: int = 0
    refused: int = 0
    flows: dict[str, FlowUse] = field(default_factory=dict)
    """Those that hold something."""

    def enter(self, flow: str) -> None:
        """One more request of the flow."""
        if self.requests >= self.max_requests:
            self.refused += 1
            raise refusals.gateway_full(self.what, self.max_requests)
        use = self.flows.get(flow)
        held = use.requests if use is not None else 0
        if held and held >= SHARE * (self.max_requests - self.requests):
            self.refused += 1
            raise refusals.flow_share_used(flow, f"{held} {self.what}")
        if use is None:
            use = self.flows[flow] = FlowUse()
        use.requests += 1
        self.requests += 1

    def take(self, flow: str, count: int) -> None:
        """Room for `count` more bytes of a request that has entered."""
        if self.bytes + count > self.max_bytes:
            self.refused += 1
            raise refusals.gateway_full("bytes of bodies", self.max_bytes)
        use = self.flows[flow]
        if use.bytes and use.bytes + count > SHARE * (self.max_bytes - self.bytes):
            self.refused += 1
            raise refusals.flow_share_used(flow, f"{use.bytes} bytes of bodies")
        use.bytes += count
        self.bytes += count

    def leave(self, flow: str, taken_bytes: int) -> None:
        """The request is over; it had taken so many bytes."""
        use = self.flows[flow]
        use.requests -= 1
        use.bytes -= taken_bytes
        if not use.requests:
            del self.flows[flow]
        self.requests -= 1
        self.bytes -= taken_bytes
