"""Log-linear histogram of nanoseconds: 16 buckets per power of two, so a quantile is at most 3.2 % off.

Bucket i covers one value for i < 32, else the 2^e values from (16 + i % 16) << e, with e = i // 16 - 1.
Recording is a shift and three additions. Negative samples (two clocks that disagree) are counted as `skewed`,
lie in bucket 0 and enter the sum as they are, so that sums of phases still add up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

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


class Histogram:
    """Counts of nanosecond samples; not safe for several threads at once."""

    __slots__ = ("_buckets", "max_ns", "skewed", "sum_ns")

    def __init__(self) -> None:
        self._buckets = [0] * BUCKETS
        self.sum_ns = 0
        self.max_ns = 0
        self.skewed = 0

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
        count = self.count
        if count == 0:
            return [0.0 for _ in fractions]
        found: list[float] = []
        filled = ((index, number) for index, number in enumerate(self._buckets) if number)
        index, reached = next(filled)
        total = reached
        for fraction in fractions:
            rank = max(1, -int(-fraction * count // 1))
            while total < rank:
                index, reached = next(filled)
                total += reached
            low, high = bucket_bounds(index)
            found.append(min((low + high) / 2, float(self.max_ns)))
        return found

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
        return {index: number for index, number in enumerate(self._buckets) if number}

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
