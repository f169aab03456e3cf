"""What metrics read at one moment, with a bound on the number of series.

A label set that was admitted stays (counters must not go away), one over the bound is counted under `_other`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from headrace.model.histogram import Histogram, bucket_bounds, bucket_of
from headrace.model.metric_table import BOUNDS_S, BY_NAME, METRICS, OTHER, PREFIX, Kind, Metric
from headrace.model.metric_totals import FORGET_AFTER_S

MOST_SERIES = 50_000
"""Of one answer: some 80 flows of three steps. A histogram's label set counts as all its lines; series without labels
come on top."""
_LINES = {Kind.COUNTER: 1, Kind.GAUGE: 1, Kind.HISTOGRAM: len(BOUNDS_S) + 3}

Labels = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Exemplar:
    """One sample of a bucket, and what to look at: its trace (empty where the execution was not sampled) and its
    execution (empty where it is not known). `at_s` is Unix time."""

    trace_id: str
    execution_id: str
    value_s: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Timings:
    """A histogram; exemplars by the index of their bound (`len(BOUNDS_S)` for +Inf)."""

    histogram: Histogram
    exemplars: Mapping[int, Exemplar] = field(default_factory=dict)

    def cumulative(self) -> list[int]:
        """Samples up to each of BOUNDS_S, then all."""
        counts = [0] * (len(BOUNDS_S) + 1)
        for index, number in self.histogram.sparse().items():
            counts[_BOUND_OF[min(index, _LAST)]] += number
        for position in range(1, len(counts)):
            counts[position] += counts[position - 1]
        return counts


def bound_of(seconds: float) -> int:
    """Index of the first bound that is not below the value."""
    return next((index for index, bound in enumerate(BOUNDS_S) if seconds <= bound), len(BOUNDS_S))


# A bucket counts for the bound in which its middle lies: at most half a bucket (3.2 %) off. All from _LAST on are
# above the highest bound.
_LAST = bucket_of(int(BOUNDS_S[-1] * 2e9))
_BOUND_OF = [bound_of(sum(bucket_bounds(index)) / 2e9) for index in range(_LAST + 1)]


class Readings:
    """Values of metrics by their labels. `add` sums what has the same labels, `put` replaces."""

    def __init__(self, series: SeriesBound | None = None) -> None:
        self._values: dict[str, dict[Labels, float]] = {}
        self._timings: dict[str, dict[Labels, Timings]] = {}
        self._series = series or SeriesBound()

    def put(self, name: str, value: float, *labels: str) -> None:
        """`name` is one of the table's, without `headrace_`; labels in the table's order."""
        metric = BY_NAME[name]
        assert len(labels) == len(metric.labels), f"{name} takes the labels {metric.labels}, not {labels}"
        admitted = self._series.admitted(metric, labels)
        values = self._values.setdefault(name, {})
        values[admitted] = value if admitted == labels else values.get(admitted, 0.0) + value

    def add(self, name: str, value: float, *labels: str) -> None:
        """Sums of gauges over several sources."""
        metric = BY_NAME[name]
        admitted = self._series.admitted(metric, labels)
        values = self._values.setdefault(name, {})
        values[admitted] = values.get(admitted, 0.0) + value

    def put_timings(self, name: str, timings: Timings, *labels: str) -> None:
        """A histogram; those over the bound are merged."""
        admitted = self._series.admitted(BY_NAME[name], labels)
        found = self._timings.setdefault(name, {})
        if admitted in found:
            merged = Histogram()
            merged.merge(found[admitted].histogram)
            merged.merge(timings.histogram)
            found[admitted] = Timings(merged, {**found[admitted].exemplars, **timings.exemplars})
        else:
            found[admitted] = timings

    def finish(self) -> None:
        """Adds what the bound itself has to tell; call it last."""
        for name, count in self._series.overflowed.items():
            self._values.setdefault("metrics_overflowed_total", {})[(name,)] = count

    def values(self, name: str) -> Mapping[Labels, float]:
        return self._values.get(name, {})

    def families(self) -> Iterator[tuple[Metric, Mapping[Labels, float], Mapping[Labels, Timings]]]:
        """What there is to tell, in the table's order: plain values, or timings."""
        for metric in METRICS:
            name = metric.name.removeprefix(PREFIX)
            values, timings = self._values.get(name, {}), self._timings.get(name, {})
            if values or timings:
                yield metric, values, timings


class SeriesBound:
    """Which label sets there may be. Kept over answers, so that a series once told is told again; one that was not
    told for 15 minutes gives up its place."""

    def __init__(self, most: int = MOST_SERIES) -> None:
        self._most = most
        self._admitted: dict[str, dict[Labels, float]] = {}
        self._lines = 0
        self._now = 0.0
        self.overflowed: dict[str, int] = {}

    @property
    def lines(self) -> int:
        """Series admitted, a histogram's label set counting as all of its lines."""
        return self._lines

    def admitted(self, metric: Metric, labels: Labels) -> Labels:
        """The labels, or `_other` for each where there is no room."""
        if not labels:
            return labels
        known = self._admitted.setdefault(metric.name, {})
        if labels not in known:
            lines = _LINES[metric.kind]
            if self._lines + lines > self._most:
                self.overflowed[metric.name] = self.overflowed.get(metric.name, 0) + 1
                return (OTHER,) * len(labels)
            self._lines += lines
        known[labels] = self._now
        return labels

    def next_answer(self, now: float) -> None:
        """Begins the next answer, at `now` in seconds of any clock that does not go back."""
        self._now = now
        oldest = now - FORGET_AFTER_S
        for name, known in self._admitted.items():
            for labels in [labels for labels, told in known.items() if told < oldest]:
                del known[labels]
                self._lines -= _LINES[BY_NAME[name.removeprefix(PREFIX)].kind]
