"""The gateway's share of the hops' phases (ARCHITECTURE, clocks and phases), per flow."""

from __future__ import annotations

import time

from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.edge.hop_recorder import HopRecorder
from headrace.model.histogram import Histogram
from headrace.wire.envelope import Reply
from services.gateway.socket_reader import SocketRead

GATEWAY_STEP = "gateway"
# Replying steps' revisions of a flow that are told of, the newest; each costs 16 kB, and its part of every snapshot.
MOST_REVISIONS = 32


class _FlowLog:
    def __init__(self, instance: str) -> None:
        self.recorder = HopRecorder(instance, 0, GATEWAY_STEP)
        self.recorder.count_with(lambda: {"processed": self.gateway_in.count})
        self.queue = self.recorder.phase(GATEWAY_STEP, "queue")
        self.gateway_in = self.recorder.phase(GATEWAY_STEP, "gateway-in")
        self.gateway_out = self.recorder.phase(GATEWAY_STEP, "gateway-out")
        self._replies: dict[tuple[str, str], tuple[Histogram, Histogram]] = {}

    def request_written(self, arrival: SocketRead, written_at_mono_ns: int) -> None:
        """The way in; without the kernel's stamp its first phase is not known and not recorded."""
        if arrival.arrived_at_unix_ns:
            self.queue.record(arrival.at_unix_ns - arrival.arrived_at_unix_ns)
        self.gateway_in.record(written_at_mono_ns - arrival.at_mono_ns)

    def reply_phases(self, step: str, revision: str) -> tuple[Histogram, Histogram]:
        """Of a replying step's revision: how long its replies take to arrive, and its whole hop."""
        key = (step, revision)
        found = self._replies.get(key)
        if found is None:
            if len(self._replies) >= MOST_REVISIONS:
                self._forget(*next(iter(self._replies)))
            found = self._replies[key] = (
                self.recorder.phase(step, "publish", GATEWAY_STEP, revision),
                self.recorder.phase(step, "hop", GATEWAY_STEP, revision),
            )
        return found

    def _forget(self, step: str, revision: str) -> None:
        del self._replies[step, revision]
        for phase in ("publish", "hop"):
            self.recorder.forget(step, phase, GATEWAY_STEP, revision)


class HopLog:
    """Filled by requests that ended in an answer of their own; replayed answers and refusals are left out."""

    def __init__(self, instance: str) -> None:
        self._instance = instance
        self._flows: dict[str, _FlowLog] = {}

    def _of(self, flow: str) -> _FlowLog:
        found = self._flows.get(flow)
        if found is None:
            found = self._flows[flow] = _FlowLog(self._instance)
        return found

    def accepted(self, flow: str, arrival: SocketRead, written_at_mono_ns: int) -> None:
        """A request whose stimulus was stored and that was answered 202."""
        self._of(flow).request_written(arrival, written_at_mono_ns)

    def replied(
        self,
        flow: str,
        reply: Reply,
        *,
        arrival: SocketRead,
        written_at_mono_ns: int,
        read_at_mono_ns: int,
        read_at_unix_ns: int,
        trace_id: bytes = b"",
    ) -> None:
        """A request whose response has been written just now."""
        log = self._of(flow)
        log.request_written(arrival, written_at_mono_ns)
        log.gateway_out.record(time.monotonic_ns() - read_at_mono_ns)
        if reply.sent_at_unix_ns:
            publish, hop = log.reply_phases(reply.step, reply.revision)
            publish.record(read_at_unix_ns - reply.sent_at_unix_ns)
            if reply.input_stored_at_unix_ns:
                hop_ns = read_at_unix_ns - reply.input_stored_at_unix_ns
                hop.record(hop_ns)
                if hop_ns >= 0:
                    hop.mark(hop_ns, read_at_unix_ns, reply.execution_id, trace_id)

    def flows(self) -> list[str]:
        """Those that have been served here."""
        return list(self._flows)

    def snapshot(self, flow: str) -> HopSnapshot | None:
        """None when the flow has not been served here."""
        found = self._flows.get(flow)
        return found.recorder.snapshot() if found else None
