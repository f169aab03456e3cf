"""Log-linear histogram of nanoseconds: 16 buckets per power of two, so a quantile is at most 3.2 % off.

Bucket i covers one value for i < 32, else the 2^e values from (16 + i % 16) << e, with e = i // 16 - 1.
Recording is a shift and three additions. Negative samples (two clocks that disagree) are counted as `skewed`,
lie in bucket 0 and enter the sum as they are, so that sums of phases still add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

_SUB_BITS = 4
_SUB = 1 << _SUB_BITS
MAX_NS = (1 << 63) - 1
BUCKETS = (63 - _SUB_BITS) * _SUB + _SUB


def bucket_of(ns: int) -> int:
    """Index of the bucket of a value from 0 to 2^63 - 1."""
    if ns < _SUB:
        return ns
    shift = ns.bit_length() - _SUB_BITS - 1
    return (shift << _SUB_BITS) + (ns >> shift)


def bucket_bounds(index: int) -> tuple[int, int]:
    """Lowest and highest value of a bucket, both inclusive."""
    if index < 2 * _SUB:
        return index, index
    shift = (index >> _SUB_BITS) - 1
    low = (_SUB + (index & (_SUB - 1))) << shift
    return low, low + (1 << shift) - 1


def quantiles_of(filled: Iterable[tuple[int, int]], count: int, max_ns: int, fractions: Iterable[float]) -> list[float]:
    """Values below which those fractions (0 to 1, rising) of `count` samples lie, ns; zeros when there are none.
    `filled`: index and number of the buckets that hold something, by rising index."""
    if count == 0:
        return [0.0 for _ in fractions]
    found: list[float] = []
    buckets = iter(filled)
    index, total = next(buckets)
    for fraction in fractions:
        rank = max(1, -int(-fraction * count // 1))
        while total < rank:
            index, number = next(buckets)
            total += number
        low, high = bucket_bounds(index)
        found.append(min((low + high) / 2, float(max_ns)))
    return found


EXEMPLAR_AGE_NS = 500_000_000


class Exemplar(NamedTuple):
    """One sample that can be looked at: its trace (16 bytes, empty where it was not sampled) and its execution."""

    ns: int
    trace_id: bytes
    execution_id: str
    time_unix_ns: int


class Histogram:
    """Counts of nanosecond samples; not safe for several threads at once."""

    __slots__ = ("_buckets", "exemplars", "max_ns", "skewed", "sum_ns")

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS
        self.sum_ns = 0
        self.max_ns = 0
        self.skewed = 0
        self.exemplars: dict[int, Exemplar] = {}
        """One of each power of two, by that power; half a second old where newer ones came since."""

    def record(self, ns: int) -> None:
        """Adds one sample, in nanoseconds; above 2^63 - 1 it counts as that."""
        self.sum_ns += ns
        if ns > self.max_ns:
            if ns > MAX_NS:
                self.sum_ns += MAX_NS - ns
                ns = MAX_NS
            self.max_ns = ns
        if ns >= 16:
            shift = ns.bit_length() - 5
            self._buckets[(shift << 4) + (ns >> shift)] += 1
        elif ns >= 0:
            self._buckets[ns] += 1
        else:
            self.skewed += 1
            self._buckets[0] += 1

    def record_all(self, samples: Sequence[int]) -> None:
        """As `record` for each of them, at less than two thirds of its cost."""
        if not samples:
            return
        longest = max(samples)
        if min(samples) < _SUB or longest > MAX_NS:
            for ns in samples:
                self.record(ns)
            return
        self.sum_ns += sum(samples)
        self.max_ns = max(self.max_ns, longest)
        buckets = self._buckets
        for ns in samples:
            shift = ns.bit_length() - 5
            buckets[(shift << 4) + (ns >> shift)] += 1

    def due_powers(self, samples: Iterable[int], now_unix_ns: int, *, traced: bool) -> set[int]:
        """Of which powers of two among these samples `mark` would take one now; `traced`: one with a trace."""
        due = set(map(int.bit_length, samples))
        for power, known in self.exemplars.items():
            aged = now_unix_ns - known.time_unix_ns >= EXEMPLAR_AGE_NS
            if power in due and not aged and (known.trace_id or not traced):
                due.discard(power)
        return due

    def mark(self, ns: int, now_unix_ns: int, execution_id: str, trace_id: bytes = b"") -> None:
        """A sample, recorded besides, that can be looked at. Of each power of two one is kept: it makes room for
        another after half a second, and one without a trace for one that has it at once."""
        power = ns.bit_length()
        known = self.exemplars.get(power)
        if known is None or now_unix_ns - known.time_unix_ns >= EXEMPLAR_AGE_NS or (trace_id and not known.trace_id):
            self.exemplars[power] = Exemplar(ns, trace_id, execution_id, now_unix_ns)

    @property
    def count(self) -> int:
        """All samples, skewed ones too."""
        return sum(self._buckets)

    @property
    def mean_ns(self) -> float:
        """0 when there are no samples."""
        count = self.count
        return self.sum_ns / count if count else 0.0

    def quantile(self, fraction: float) -> float:
        """Value below which that fraction (0 to 1) of the samples lies, ns; 0 when there are none."""
        return self.quantiles([fraction])[0]

    def quantiles(self, fractions: Iterable[float]) -> list[float]:
        """Several quantiles in one pass; the fractions in rising order."""
        filled = ((index, number) for index, number in enumerate(self._buckets) if number)
        return quantiles_of(filled, self.count, self.max_ns, fractions)

    def merge(self, other: Histogram) -> None:
        """Adds the samples of another."""
        mine = self._buckets
        for index, number in enumerate(other._buckets):
            if number:
                mine[index] += number
        self.sum_ns += other.sum_ns
        self.skewed += other.skewed
        self.max_ns = max(self.max_ns, other.max_ns)

    def sparse(self) -> dict[int, int]:
        """Buckets that hold something, by index."""
        filled = self._buckets[: bucket_of(self.max_ns) + 1]
        return {index: number for index, number in enumerate(filled) if number}

    @classmethod
    def from_sparse(cls, buckets: Mapping[int, int], *, sum_ns: int, max_ns: int, skewed: int) -> Histogram:
        """The opposite of `sparse`; ValueError for an index that no value has."""
        histogram = cls()
        for index, number in buckets.items():
            if not 0 <= index < BUCKETS:
                raise ValueError(f"buckets: {index} is not a bucket (0 to {BUCKETS - 1})")
            histogram._buckets[index] = number
        histogram.sum_ns, histogram.max_ns, histogram.skewed = sum_ns, max_ns, skewed
        return histogram
