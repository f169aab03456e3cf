"""Fills the histograms of this step's hops from lots of records, off the path: whole columns at once.

What only the receiver of a message can know (when it was stored) is counted by the receiver under the sender's name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import sub
from typing import TYPE_CHECKING

from headrace.model.hop_record import HopRecord

if TYPE_CHECKING:
    from headrace.edge.hop_recorder import HopRecorder
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from headrace.model.histogram import Histogram
    from headrace.model.hop_record import Site
    from headrace.model.record_lot import RecordLot

# Which samples a record holds.
ARRIVAL = 1
"""Its input's wait, and the publish and the hop of whoever sent it."""
CALL = 2
"""The way into the component, and the component."""
WAY_OUT = 4
END = 8
"""Of an input that ends with its acknowledgement: that one is its publish, and ends its hop."""

INGRESS_SENDER = "gateway"
MAX_SENDERS = 64


class HopTally:
    """Samples below zero are clock skew; the histograms count them as such."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan, recorder: HopRecorder) -> None:
        self._step = step.name
        self._revision_of = {known.name: known.pin.digest for known in plan.steps}
        self._recorder = recorder
        own = partial(recorder.phase, step.name, revision=step.pin.digest)
        self._queue, self._in, self._component, self._out = map(
            own, ("queue", "sidecar-in", "component", "sidecar-out")
        )
        self._terminal, self._whole = own("publish"), own("hop")
        """Of an input without output: its acknowledgement, and its whole hop."""
        self._of_senders: dict[str, tuple[Histogram, Histogram]] = {}
        self.ways_out: list[int] = []
        """Of outputs that their input's record does not tell of: all but the last, ns."""

    def take(self, lot: RecordLot) -> None:
        """A tap of the span log."""
        ways_out, self.ways_out = self.ways_out, []
        self._out.record_all(ways_out)
        if not lot.hops:
            return
        samples = lot.column("samples")
        if samples.count(samples[0]) == len(samples):
            self._count(samples[0], lot.hops, lot.column)
            return
        alike: dict[int, list[HopRecord]] = {}
        for record in lot.hops:
            alike.setdefault(record.samples, []).append(record)
        for which, records in alike.items():
            self._count(which, records, partial(_column, records))

    def arrived(
        self, sender: str, sent_ns: int, input_stored_ns: int, stored_ns: int, read_ns: int, execution: str
    ) -> None:
        """One input whose record tells nothing of its arrival, or will not for long; all Unix ns."""
        self._queue.record(read_ns - stored_ns)
        publishes, hops = self._sender(sender)
        if sent_ns:
            publishes.record(stored_ns - sent_ns)
        if input_stored_ns:
            hops.record(stored_ns - input_stored_ns)
            if stored_ns >= input_stored_ns:
                hops.mark(stored_ns - input_stored_ns, read_ns, execution)

    def _count(self, which: int, records: Sequence[HopRecord], column: Callable[[str], Sequence[int]]) -> None:
        """Records that hold the same samples."""
        if which & ARRIVAL:
            stored_ns = column("stored_at_unix_ns")
            self._queue.record_all(list(map(sub, column("received_at_unix_ns"), stored_ns)))
            self._count_senders(records, column, stored_ns)
        if which & CALL:
            entered_ns = column("entered_at_mono_ns")
            self._in.record_all(list(map(sub, entered_ns, column("received_at_mono_ns"))))
            self._component.record_all(list(map(sub, column("left_at_mono_ns"), entered_ns)))
        if which & (WAY_OUT | END):
            written_ns = column("written_at_mono_ns")
            if which & WAY_OUT:
                self._out.record_all(list(map(sub, written_ns, column("left_at_mono_ns"))))
            if which & END:
                self._terminal.record_all(list(map(sub, column("ended_at_mono_ns"), written_ns)))
                whole_ns = list(map(sub, column("confirmed_at_unix_ns"), column("stored_at_unix_ns")))
                _count_hops(self._whole, whole_ns, records)

    def _count_senders(
        self, records: Sequence[HopRecord], column: Callable[[str], Sequence[int]], stored_ns: Sequence[int]
    ) -> None:
        senders: Sequence[Site | None] = column("sender")  # type: ignore[assignment]
        if senders.count(senders[0]) < len(senders):
            of_each: dict[Site | None, list[HopRecord]] = {}
            for record in records:
                of_each.setdefault(record.sender, []).append(record)
            for group in of_each.values():
                each = partial(_column, group)
                self._count_senders(group, each, each("stored_at_unix_ns"))
            return
        site = senders[0]
        publishes, hops = self._sender(site.step if site is not None else "")
        sent_ns, input_stored_ns = column("sent_at_unix_ns"), column("input_stored_at_unix_ns")
        if all(sent_ns):
            publishes.record_all(list(map(sub, stored_ns, sent_ns)))
        else:
            publishes.record_all([at - sent for at, sent in zip(stored_ns, sent_ns, strict=True) if sent])
        if not any(input_stored_ns):
            return  # it was the ingress
        if not all(input_stored_ns):
            records = [record for record in records if record.input_stored_at_unix_ns]
            stored_ns, input_stored_ns = _column(records, "stored_at_unix_ns"), list(filter(None, input_stored_ns))
        _count_hops(hops, list(map(sub, stored_ns, input_stored_ns)), records)

    def _sender(self, name: str) -> tuple[Histogram, Histogram]:
        """What is known of whoever sends to this step: its publishes, and its whole hops."""
        known = self._of_senders.get(name)
        if known is not None:
            return known
        revision, phase = self._revision_of.get(name, ""), self._recorder.phase
        made = phase(name or INGRESS_SENDER, "publish", self._step, revision), phase(name, "hop", self._step, revision)
        if len(self._of_senders) < MAX_SENDERS:
            self._of_senders[name] = made
        return made


def _column(records: Sequence[HopRecord], field: str) -> list[int]:
    return [getattr(record, field) for record in records]


def _count_hops(histogram: Histogram, took_ns: list[int], records: Sequence[HopRecord]) -> None:
    """Counts whole hops; of each power of two one may be shown to people, rather one that has a trace."""
    histogram.record_all(took_ns)
    now_ns = records[-1].received_at_unix_ns
    due = histogram.due_powers(took_ns, now_ns, traced=any(record.sampled for record in records))
    shown: dict[int, tuple[int, HopRecord]] = {}
    for ns, record in zip(took_ns, records, strict=True) if due else ():
        power = ns.bit_length()
        if power in due and ns >= 0 and (record.sampled or power not in shown):
            shown[power] = ns, record
    for ns, record in shown.values():
        trace_id = bytes.fromhex(record.trace_id) if record.sampled and record.trace_id.isalnum() else b""
        histogram.mark(ns, now_ns, record.execution_id, trace_id)
