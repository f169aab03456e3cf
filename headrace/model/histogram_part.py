"""What a histogram gained between two looks at it; parts add up and are taken away again, exactly.

Instances count from their start on and are only ever read: whoever wants the last ten seconds subtracts. So any number
may look, none of them disturbs another, and a look that was missed is made good by the next one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from headrace.model.histogram import bucket_bounds, quantiles_of


@dataclass(slots=True)
class HistogramPart:
    """Sparse: bucket index to count. `max_ns` is exact where the part holds the histogram's longest sample so far, else
    the middle of its highest bucket (at most 3.2 % off)."""

    buckets: dict[int, int] = field(default_factory=dict)
    sum_ns: int = 0
    max_ns: int = 0
    skewed: int = 0

    @property
    def count(self) -> int:
        """All samples, skewed ones too."""
        return sum(self.buckets.values())

    @property
    def mean_ns(self) -> float:
        """0 when there are no samples."""
        count = self.count
        return self.sum_ns / count if count else 0.0

    def quantiles(self, fractions: Iterable[float]) -> list[float]:
        """As those of `Histogram`; the fractions in rising order."""
        return quantiles_of(sorted(self.buckets.items()), self.count, self.max_ns, fractions)

    def add(self, other: HistogramPart) -> None:
        """Now also holds the other's samples."""
        mine = self.buckets
        for index, number in other.buckets.items():
            mine[index] = mine.get(index, 0) + number
        self.sum_ns += other.sum_ns
        self.skewed += other.skewed
        self.max_ns = max(self.max_ns, other.max_ns)

    def remove(self, other: HistogramPart) -> None:
        """Takes away what was added before. `max_ns` is not known then: the caller sets it from what is left."""
        mine = self.buckets
        for index, number in other.buckets.items():
            left = mine[index] - number
            if left:
                mine[index] = left
            else:
                del mine[index]
        self.sum_ns -= other.sum_ns
        self.skewed -= other.skewed


def gained(before: HistogramPart, after: HistogramPart) -> HistogramPart | None:
    """What `after`, a later look at the same histogram, has more; None where it has less of anything: it began anew."""
    buckets = {index: number - before.buckets.get(index, 0) for index, number in after.buckets.items()}
    if any(number < 0 for number in buckets.values()) or not before.buckets.keys() <= buckets.keys():
        return None
    buckets = {index: number for index, number in buckets.items() if number}
    if after.max_ns > before.max_ns:
        longest = after.max_ns
    elif buckets:
        low, high = bucket_bounds(max(buckets))
        longest = min((low + high) // 2, after.max_ns)
    else:
        longest = 0
    return HistogramPart(buckets, after.sum_ns - before.sum_ns, longest, after.skewed - before.skewed)
