"""Counters of many processes that come and go, as totals that only rise.

A process counts from its own start. What it counted since the last look is added to the total of its labels; when it
was replaced, its successor's count begins at zero. So a total survives the processes that made it, which a sum over
the present processes would not: Prometheus takes every fall of a counter for a restart from zero.
What a process counted after the last look and before its end is lost.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from headrace.model.histogram import Histogram, bucket_bounds

Key = TypeVar("Key", bound=Hashable)

# Of a histogram, beside its buckets.
_SUM, _SKEWED = -1, -2


FORGET_AFTER_S = 900.0
"""A process that was not heard for so long is forgotten, and a key that none told of."""


@dataclass(slots=True)
class _Source(Generic[Key]):
    incarnation: str
    heard_at: float
    counted: dict[Key, int] = field(default_factory=dict)


class Totals(Generic[Key]):
    """Totals by key, of sources by name. With `may_fall` a count that fell (while its source says that it is the same)
    is taken as it is, else it has begun anew at zero."""

    def __init__(self, *, may_fall: bool = False) -> None:
        self._may_fall = may_fall
        self._sources: dict[str, _Source[Key]] = {}
        self._totals: dict[Key, int] = {}
        self._told: dict[Key, float] = {}
        self._now = 0.0

    def take(self, source: str, incarnation: str, counted: Mapping[Key, int]) -> None:
        """What a source has counted since its start. `incarnation` differs whenever it began anew."""
        known = self._sources.get(source)
        if known is None or known.incarnation != incarnation:
            known = self._sources[source] = _Source(incarnation, self._now)
        known.heard_at = self._now
        before = known.counted
        for key, value in counted.items():
            self._told[key] = self._now
            grown = value - before.get(key, 0)
            if grown < 0 and not self._may_fall:
                grown = value
            self._totals[key] = self._totals.get(key, 0) + grown
            before[key] = value

    def next_look(self, now: float) -> None:
        """Begins the next look, at `now` in seconds of any clock that does not go back."""
        self._now = now
        oldest = now - FORGET_AFTER_S
        for name in [name for name, source in self._sources.items() if source.heard_at < oldest]:
            del self._sources[name]
        for key in [key for key, told in self._told.items() if told < oldest]:
            del self._told[key]
            del self._totals[key]

    def items(self) -> Mapping[Key, int]:
        return self._totals


class HistogramTotals(Generic[Key]):
    """The same for histograms: bucket by bucket."""

    def __init__(self) -> None:
        self._counts: Totals[tuple[Key, int]] = Totals(may_fall=True)  # negative samples lower a sum

    def take(self, source: str, incarnation: str, counted: Mapping[Key, Histogram]) -> None:
        flat: dict[tuple[Key, int], int] = {}
        for key, histogram in counted.items():
            for bucket, number in histogram.sparse().items():
                flat[key, bucket] = number
            flat[key, _SUM] = histogram.sum_ns
            flat[key, _SKEWED] = histogram.skewed
        self._counts.take(source, incarnation, flat)

    def next_look(self, now: float) -> None:
        self._counts.next_look(now)

    def items(self) -> dict[Key, Histogram]:
        """A histogram for each key; the longest sample is known to its bucket only."""
        buckets: dict[Key, dict[int, int]] = {}
        rest: dict[tuple[Key, int], int] = {}
        for (key, bucket), number in self._counts.items().items():
            found = buckets.setdefault(key, {})
            if bucket >= 0:
                found[bucket] = number
            else:
                rest[key, bucket] = number
        return {
            key: Histogram.from_sparse(
                counts,
                sum_ns=rest.get((key, _SUM), 0),
                max_ns=bucket_bounds(max(counts, default=0))[1],
                skewed=rest.get((key, _SKEWED), 0),
            )
            for key, counts in buckets.items()
        }
