"""Which executions are traced: a ratio per flow, what is kept whatever the ratio, and the next ones a person asks for.

A trace is sampled or not where it begins, from its id alone, so that every process says the same; where a caller brings
a trace of its own, that caller's flag decides. What was not sampled is still remembered for a while in each process, so
that it can be kept once it shows that it is worth it: it failed, was tried again or given up, or took longer than
anything else did at that step in that minute. Then all processes keep what they have of that execution.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import add, sub

import msgspec

from headrace.model.errors import InvalidInput
from headrace.model.hop_record import HopOutcome, HopRecord, Record
from headrace.model.record_filter import RecordFilter, parse_filter
from headrace.model.record_lot import RecordLot, went_wrong

DEFAULT_RATIO = 1.0
MAX_CAPTURE = 100
DEFAULT_CAPTURE_S = 600.0
LONGEST_CAPTURE_S = 86_400.0
MAX_DETAIL = 500
MAX_UNRECORDED = 50
"""Changes that wait for the history; past it the oldest are given up rather than the document."""
_IDS = 1 << 64
MINUTE_NS = 60_000_000_000
SLOWEST = "slowest"


class Capture(msgspec.Struct, frozen=True):
    """The next executions of which a hop fits `where` (empty: any), from `since` to `until` (Unix seconds)."""

    wanted: int
    where: str
    since: float
    until: float
    caught: tuple[str, ...] = ()
    """Execution ids, in the order in which they were caught."""

    @property
    def full(self) -> bool:
        return len(self.caught) >= self.wanted

    def open(self, now: float) -> bool:
        """Whether it still catches."""
        return not self.full and now < self.until


class SamplingChange(msgspec.Struct, frozen=True):
    """What a person changed, for the flow's history. `at_ms`: Unix milliseconds; no two of a flow have the same."""

    at_ms: int
    who: str
    what: str
    detail: str


class Sampling(msgspec.Struct, frozen=True):
    """A flow's mutable document of sampling (`headrace.model.bucket_names.sampling_key`)."""

    ratio: float = DEFAULT_RATIO
    capture: Capture | None = None
    changed_at: float = 0.0
    unrecorded: tuple[SamplingChange, ...] = ()
    """Until the flow's history has them."""


DEFAULT = Sampling()


def encode_sampling(sampling: Sampling) -> bytes:
    return msgspec.json.encode(sampling)


def decode_sampling(raw: bytes) -> Sampling:
    return msgspec.json.decode(raw, type=Sampling)


def check_ratio(ratio: float) -> float:
    """InvalidInput unless 0 to 1."""
    if not 0.0 <= ratio <= 1.0:
        raise InvalidInput.at("ratio", ratio, "is not between 0 and 1", next_step="Use for example 0.01 for one in 100")
    return ratio


def with_ratio(present: Sampling, ratio: float, who: str, now: float) -> Sampling | None:
    """None where it is that ratio already."""
    if present.ratio == ratio:
        return None
    changed = msgspec.structs.replace(present, ratio=ratio)
    return _noted(present, changed, who, now, "sampling", f"ratio {ratio:g} (was {present.ratio:g})")


def with_capture(present: Sampling, capture: Capture, who: str, now: float) -> Sampling:
    """It takes the place of the one before."""
    what = f" where {capture.where}" if capture.where else ""
    before = present.capture
    replaced = f"; in place of one with {len(before.caught)} of {before.wanted}" if before and before.open(now) else ""
    detail = f"the next {capture.wanted}{what}, within {capture.until - capture.since:g} s{replaced}"
    return _noted(present, msgspec.structs.replace(present, capture=capture), who, now, "capture", detail)


def _noted(before: Sampling, after: Sampling, who: str, now: float, what: str, detail: str) -> Sampling:
    at_ms = max(int(now * 1000), int(before.changed_at * 1000 + 0.5) + 1)
    change = SamplingChange(at_ms, who, what, detail[:MAX_DETAIL])
    unrecorded = (*before.unrecorded, change)[-MAX_UNRECORDED:]
    return msgspec.structs.replace(after, changed_at=at_ms / 1000, unrecorded=unrecorded)


def without_recorded(recorded: Sequence[SamplingChange], present: Sampling) -> Sampling | None:
    """The document once the history has those; None where they have left it already."""
    left = tuple(change for change in present.unrecorded if change not in recorded)
    return msgspec.structs.replace(present, unrecorded=left) if left != present.unrecorded else None


def new_capture(count: int, where: str, now: float, within_s: float = 0.0) -> Capture:
    """InvalidInput for a number or a limit out of bounds, or what is no filter. `within_s` 0: ten minutes."""
    if not 1 <= count <= MAX_CAPTURE:
        raise InvalidInput.at("next", count, f"is not between 1 and {MAX_CAPTURE}")
    if not 0 <= within_s <= LONGEST_CAPTURE_S:
        raise InvalidInput.at("within", within_s, f"is not between 0 and {LONGEST_CAPTURE_S:.0f} seconds")
    text = parse_filter(where, "where").text
    return Capture(count, text, now, now + (within_s or DEFAULT_CAPTURE_S))


def claimed(sampling: Sampling, executions: Iterable[str], now: float) -> Sampling | None:
    """The document with those executions caught, as far as there is room; None where that changes nothing."""
    capture = sampling.capture
    if capture is None or not capture.open(now):
        return None
    caught = list(capture.caught)
    for execution in executions:
        if len(caught) < capture.wanted and execution not in caught:
            caught.append(execution)
    if len(caught) == len(capture.caught):
        return None
    return msgspec.structs.replace(sampling, capture=msgspec.structs.replace(capture, caught=tuple(caught)))


def bound_of(ratio: float) -> int:
    """A trace is sampled when the last 64 bits of its id are below this; the stock SDK's TraceIdRatioBased says the
    same of the same ratio."""
    return round(ratio * _IDS)


def is_sampled(trace_id: str, bound: int) -> bool:
    """`trace_id` in hexadecimal digits; of what is none, False."""
    try:
        return int(trace_id[-16:], 16) < bound
    except ValueError:
        return False


class CaptureMatcher:
    """Finds executions for one capture, each once."""

    def __init__(self, capture: Capture) -> None:
        self.capture = capture
        self._filter: RecordFilter = parse_filter(capture.where, "where")
        self._since_ns = int(capture.since * 1e9)
        self._seen = set(capture.caught)

    def found(self, records: Sequence[Record]) -> list[str]:
        """Executions of those that fit and began to be worked on after the capture was asked for."""
        new: dict[str, None] = {}
        for record in records:
            if (
                record.execution_id not in self._seen
                and _moment_ns(record) >= self._since_ns
                and self._filter.fits(record)
            ):
                new[record.execution_id] = None
                if len(self._seen) + len(new) > 4 * MAX_CAPTURE:
                    break
        self._seen.update(new)
        return list(new)


class TailRules:
    """What of the records that were not sampled is worth keeping all the same. One per process; not thread-safe."""

    def __init__(self) -> None:
        self._minute = 0
        self._slowest: dict[tuple[str, str], int] = {}

    def reason(self, record: Record) -> str:
        """`retry` (it is followed by another attempt, or is one), `error`, `slowest`, or empty. Ask once a record, in
        the order in which they ended.

        `slowest`: none of its flow and step that ended in this minute took longer so far. So the slowest of each minute
        is kept for certain, at once, with a few that were the slowest before it (as many as the logarithm). Where a
        caller brought a trace of its own, not to be sampled, being slow is no reason to do it all the same.
        """
        slow = self._is_slowest(record)
        if isinstance(record, HopRecord) and (record.outcome is HopOutcome.RETRIED or record.attempt > 1):
            return "retry"
        if record.failed:
            return "error"
        return SLOWEST if slow else ""

    def to_be_asked(self, lot: RecordLot) -> Sequence[Record]:
        """Those of a lot, in order, for which `reason` may have one, or that it must know of; of all others it learns
        nothing. Most of a lot of one step took no longer than others before."""
        records, hops = lot.records, lot.hops
        if len(hops) < len(records) or not records or _end_ns(records[-1]) // MINUTE_NS > self._minute:
            return records
        sites = lot.column("site")
        site = sites[0]
        if sites.count(site) < len(hops) or not all(lot.column("opens")) or not all(lot.column("written_at_mono_ns")):
            return records
        known_ns = self._slowest.get((site.flow, site.step), 0)
        waited_ns = map(sub, lot.column("received_at_unix_ns"), lot.column("stored_at_unix_ns"))
        worked_ns = map(sub, lot.column("written_at_mono_ns"), lot.column("received_at_mono_ns"))
        took_ns = list(map(add, waited_ns, worked_ns))
        if not lot.went_wrong and max(took_ns) <= known_ns:
            return ()
        return [hop for hop, ns in zip(hops, took_ns, strict=True) if ns > known_ns or went_wrong(hop)]

    def _is_slowest(self, record: Record) -> bool:
        minute = _end_ns(record) // MINUTE_NS
        if minute > self._minute:
            self._minute = minute
            self._slowest.clear()
        if record.trace_id != record.execution_id:
            return False
        site = record.site
        key = (site.flow, site.step)
        took_ns = record.duration_ns
        if took_ns <= self._slowest.get(key, 0):
            return False
        self._slowest[key] = took_ns
        return True


def _moment_ns(record: Record) -> int:
    return record.received_at_unix_ns if isinstance(record, HopRecord) else record.started_at_unix_ns


def _end_ns(record: Record) -> int:
    return record.unix_of(record.ended_at_mono_ns) if isinstance(record, HopRecord) else record.ended_at_unix_ns
