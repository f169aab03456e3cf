"""The records of one process, from the path that makes them to whoever wants them.

On the path a record costs one append. A moment later, off the path, each lot of records goes to every `tap` (whole: a
buffer of recent executions), and those that the `sampler` keeps go to the exporter. Nothing runs while nothing happens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from headrace.edge.structured_log import get_logger
from headrace.model.hop_record import Exportable, Record, SpanCounts
from headrace.model.record_lot import RecordLot

log = get_logger(__name__)

HAND_OVER_S = 0.2
LOT = 256
"""Under load so many are handed over at once: half a millisecond's work, which nobody on the path has to wait longer
for."""
MAX_RECORDS = 8_192

Tap = Callable[[RecordLot], None]
"""Gets every record, sampled or not, in lots; must be quick and raise nothing."""


class Sampler(Protocol):
    """Where sampling is decided."""

    def begins(self, flow: str, trace_id: str) -> bool:
        """Whether a trace that begins here is sampled: the flag that travels with it. Asked on the path."""

    def keep(self, lot: RecordLot) -> Sequence[Record]:
        """Those of a lot that are exported: by their flag, or because they are worth it. Asked off the path; may
        give records of earlier lots, too."""


class Exporter(Protocol):
    """Where kept records go; bounded, never raises."""

    def put(self, records: Sequence[Exportable]) -> None:
        """Takes records to be sent; what finds no room is dropped and counted."""


class KeepFlagged:
    """Everything begins sampled; kept is what is flagged."""

    def begins(self, flow: str, trace_id: str) -> bool:
        return True

    def keep(self, lot: RecordLot) -> Sequence[Record]:
        return lot.records if lot.all_sampled else [record for record in lot.records if record.sampled]


class SpanLog:
    """Create inside the running loop. Without exporter and taps nobody should be given it: `wanted` is False."""

    def __init__(
        self,
        *,
        exporter: Exporter | None = None,
        sampler: Sampler | None = None,
        counts: SpanCounts | None = None,
        hand_over_s: float = HAND_OVER_S,
    ) -> None:
        self.exporter = exporter
        self.sampler: Sampler = sampler or KeepFlagged()
        self.taps: list[Tap] = []
        self.tallies: list[Tap] = []
        """Taps that count what comes, and alone are no reason to record anything for the sake of traces."""
        self.counts = counts or SpanCounts()
        self._hand_over_s = hand_over_s
        self._records: list[Record] = []
        self._timer: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()

    @property
    def wanted(self) -> bool:
        """Whether anybody takes records."""
        return self.exporter is not None or bool(self.taps)

    def add(self, record: Record) -> None:
        """Takes a record; past the bound it is dropped and counted."""
        records = self._records
        records.append(record)
        # All but the first of a lot and the one that fills it are done with.
        if len(records) % LOT < 2:
            self._look()

    def _look(self) -> None:
        records = self._records
        if len(records) > MAX_RECORDS:
            self.counts.dropped += len(records) - MAX_RECORDS
            del records[MAX_RECORDS:]
        elif len(records) % LOT == 0:
            self._loop.call_soon(self.hand_over)
        elif self._timer is None:
            self._timer = self._loop.call_later(self._hand_over_s, self._in_time)

    def _in_time(self) -> None:
        self._timer = None
        self.hand_over()

    def hand_over(self) -> None:
        """Gives what was recorded to taps and exporter now."""
        records, self._records = self._records, []
        if not records:
            return
        lot = RecordLot(records)
        if self.wanted:
            self.counts.recorded += len(records)
        try:
            for take in (*self.tallies, *self.taps):
                take(lot)
            if self.exporter is not None:
                kept = self.sampler.keep(lot)
                self.counts.left_out += max(0, len(records) - len(kept))
                self.exporter.put(kept)
        except Exception:
            self.counts.dropped += len(records)
            log.exception("records could not be handed over", count=len(records))
