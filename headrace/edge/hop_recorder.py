"""Records hop phases in one process and answers whoever asks for them on NATS."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from nats.aio.client import Client

from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.edge.nats_responder import NatsResponder
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.histogram import Histogram
from headrace.model.hop_windows import PhaseKey
from headrace.wire.hops import phase_to_proto

log = get_logger(__name__)


class HopRecorder:
    """Histograms of one instance. Take the handle of a phase once and call its `record(ns)` on the path.

    `deployment` 0 for a gateway, which belongs to none.
    """

    def __init__(self, instance: str, deployment: int, step: str = "") -> None:
        self._instance, self._deployment, self._step = instance, deployment, step
        self._phases: dict[PhaseKey, Histogram] = {}
        self._began_unix_ns, self._began_mono_ns = time.time_ns(), time.monotonic_ns()
        self._counters: Callable[[], Mapping[str, int]] = dict
        self._held: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self._revision = ""
        self.before_telling: Callable[[], None] = _nothing
        """Brings the histograms up to date; called by each `snapshot`."""

    def count_with(
        self,
        counters: Callable[[], Mapping[str, int]],
        held: Callable[[], tuple[int, int]] = lambda: (0, 0),
        *,
        revision: str = "",
    ) -> None:
        """Asked for with each snapshot: the instance's counters, and how many messages it holds, with when the oldest
        of them was stored (Unix nanoseconds, 0 for none). `revision` is the digest of what it runs."""
        self._counters, self._held, self._revision = counters, held, revision

    def phase(self, step: str, phase: str, receiver: str = "", revision: str = "") -> Histogram:
        """The histogram of that phase, always the same one; phases are those of `headrace.wire.hops`."""
        key = (step, phase, receiver, revision)
        histogram = self._phases.get(key)
        if histogram is None:
            histogram = self._phases[key] = Histogram()
        return histogram

    def forget(self, step: str, phase: str, receiver: str = "", revision: str = "") -> None:
        """Its samples are not told any more; a handle that is left does nothing to the snapshot."""
        self._phases.pop((step, phase, receiver, revision), None)

    def record(self, step: str, phase: str, receiver: str, revision: str, ns: int) -> None:
        """For where no handle is at hand."""
        self.phase(step, phase, receiver, revision).record(ns)

    def snapshot(self) -> HopSnapshot:
        """What was recorded since the process started; phases without samples are left out."""
        self.before_telling()
        held, oldest_unix_ns = self._held()
        return HopSnapshot(
            instance=self._instance,
            deployment=self._deployment,
            histograms=[phase_to_proto(key, found) for key, found in self._phases.items() if found.count],
            incarnation=self._began_unix_ns,
            uptime_ns=time.monotonic_ns() - self._began_mono_ns,
            step=self._step,
            revision=self._revision,
            counters=self._counters(),
            held=held,
            oldest_age_ns=max(0, time.time_ns() - oldest_unix_ns) if oldest_unix_ns else 0,
        )


def _nothing() -> None:
    """Whoever calls `record` has nothing to add."""


class HopResponder(NatsResponder):
    """Answers requests on `hr.<workspace>._hops.<flow>` with a snapshot.

    `flow` may be `*`; `snapshot_of(flow)` is then asked with the flow of the request and may answer None (no
    answer is sent).
    """

    def __init__(
        self, connection: Client, workspace: str, flow: str, snapshot_of: Callable[[str], HopSnapshot | None]
    ) -> None:
        super().__init__(connection, subjects.hop_request_subject(workspace, flow))
        self._snapshot_of = snapshot_of

    def answers(self, asked: str) -> list[bytes]:
        """See NatsResponder."""
        snapshot = self._snapshot_of(asked)
        return [] if snapshot is None else [snapshot.SerializeToString()]
