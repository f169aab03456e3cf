"""Open-loop pacing and percentiles of raw samples."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence

from headrace.model.histogram import Histogram


def percentile(samples: Sequence[float], share: float) -> float:
    """Nearest-rank percentile; 0.0 without samples."""
    if not samples:
        return 0.0
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))]


def summary_us(samples_ns: Sequence[int]) -> dict[str, float]:
    """p50, p95, p99 and mean in microseconds, the count, and how far off the mesh's histogram is for the samples."""
    values = [sample / 1000 for sample in samples_ns]
    return {
        "p50_us": round(percentile(values, 0.50), 1),
        "p95_us": round(percentile(values, 0.95), 1),
        "p99_us": round(percentile(values, 0.99), 1),
        "mean_us": round(sum(values) / len(values), 1) if values else 0.0,
        "count": len(values),
        "histogram_error_percent": histogram_error_percent(samples_ns) if samples_ns else 0.0,
    }


def histogram_error_percent(samples_ns: Sequence[int]) -> float:
    """How far off the mesh's histogram is for these very samples: the worst of p50, p95 and p99."""
    histogram = Histogram()
    for sample in samples_ns:
        histogram.record(sample)
    shares = (0.5, 0.95, 0.99)
    exact = [percentile(samples_ns, share) for share in shares]
    pairs = zip(histogram.quantiles(shares), exact, strict=True)
    return round(max(100 * abs(found - value) / value for found, value in pairs if value), 2)


async def open_loop(rate: float, seconds: float, fire: Callable[[int], object]) -> int:
    """Calls `fire(due_ns)` at the given rate whatever happens; late calls keep their due time
    (so that waiting behind a stall is counted, not omitted). Answers how many were fired."""
    start = time.time_ns()
    step = int(1e9 / rate)
    count = int(rate * seconds)
    for index in range(count):
        due = start + index * step
        if (ahead := due - time.time_ns()) > 0:
            await asyncio.sleep(ahead / 1e9)
        fire(due)
    return count
