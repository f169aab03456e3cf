"""The gateway's share of the hops' phases (ARCHITECTURE, clocks), per flow and deployment."""

from __future__ import annotations

from headrace.model.route import Route
from services.gateway.reply_desk import ReceivedReply


class HopLog:
    """Filled by requests, read by whoever asks for snapshots."""

    def accepted(self, route: Route, received_at_mono_ns: int, written_at_mono_ns: int) -> None:
        """A request that was answered 202."""

    def replied(self, flow: str, received_at_mono_ns: int, written_at_mono_ns: int, received: ReceivedReply) -> None:
        """A request that was answered with a reply, just now."""

    def snapshots(self, flow: str) -> list[bytes]:
        """Serialised HopSnapshots of a flow, one per deployment."""
        return []
