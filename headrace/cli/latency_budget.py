"""Whether the phases add up to the caller's own clock. Pure.

The phases of the mesh begin when a request's bytes are at the gateway's socket and end when the response is
written there. What lies outside is the caller's own: its writing, and how long the answer lies at its socket until
it comes to read it, which it measures by the kernel's stamp and adds as step `caller`, phase `queue`.

Medians do not add, totals do: the sum over phases of mean x count along the reply's path, divided by the
number of requests, stands against the mean of the caller's latencies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

GATEWAY = "gateway"
CALLER = "caller"
PUBLISH = "publish"
WAY_OUT = "sidecar-out"
PHASES = ("queue", "gateway-in", "sidecar-in", "component", "sidecar-out", PUBLISH, "gateway-out")
TOLERANCE_SHARE = 0.02
TOLERANCE_US = 300.0


class PhaseRow(Protocol):
    """One row of the hop table (`headrace.api.hop.v1.HopPhase`)."""

    @property
    def step(self) -> str: ...
    @property
    def phase(self) -> str: ...
    @property
    def receiver(self) -> str: ...
    @property
    def count(self) -> int: ...
    @property
    def mean_us(self) -> float: ...


@dataclass(frozen=True, slots=True)
class Budget:
    """Means per request, microseconds."""

    requests: int
    phases_us: float
    caller_us: float
    path: tuple[str, ...]

    @property
    def difference_us(self) -> float:
        """What the caller saw and no phase accounts for."""
        return self.caller_us - self.phases_us

    @property
    def adds_up(self) -> bool:
        """Within 2 % or 0.3 ms."""
        return abs(self.difference_us) <= max(TOLERANCE_US, self.caller_us * TOLERANCE_SHARE)


def reply_path(rows: Sequence[PhaseRow]) -> tuple[str, ...]:
    """Steps that reply, or lead to one that does, the gateway first, in the order of the flow."""
    edges = {(row.step, row.receiver) for row in rows if row.phase == PUBLISH and row.receiver and row.count}
    leading = {sender for sender, receiver in edges if receiver == GATEWAY}
    while more := {sender for sender, receiver in edges if receiver in leading} - leading:
        leading |= more
    return (GATEWAY, *in_flow_order([step for step in leading if step != GATEWAY], edges))


def in_flow_order(steps: Sequence[str], edges: set[tuple[str, str]]) -> list[str]:
    """The steps so that senders stand before receivers; by name where the order is free."""
    left, ordered = set(steps), list[str]()
    while left:
        free = sorted(step for step in left if not any((other, step) in edges for other in left))
        ordered += free or sorted(left)
        left -= set(free or left)
    return ordered


def make_budget(rows: Sequence[PhaseRow], latencies_us: Sequence[float]) -> Budget:
    """`latencies_us` are the caller's, of exactly the requests that went through the flow."""
    path = reply_path(rows)
    total_us = sum(row.mean_us * _samples_on_path(row, rows, path) for row in rows)
    requests = len(latencies_us)
    if not requests:
        return Budget(0, 0.0, 0.0, path)
    return Budget(requests, total_us / requests, sum(latencies_us) / requests, path)


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile; 0 for no values."""
    if not values:
        return 0.0
    rank = math.ceil(share * len(values) - 1e-9)
    return sorted(values)[max(0, rank - 1)]


def _samples_on_path(row: PhaseRow, rows: Sequence[PhaseRow], path: tuple[str, ...]) -> int:
    """How many of a row's samples belong to the reply's path.

    An output for a side branch has its own way out and its own publish: neither counts.
    """
    if row.step not in (*path, CALLER) or row.phase not in PHASES:
        return 0
    if row.phase == PUBLISH:
        return row.count if row.receiver in path else 0
    if row.phase == WAY_OUT:
        sent = sum(
            _samples_on_path(other, rows, path) for other in rows if (other.step, other.phase) == (row.step, PUBLISH)
        )
        return min(row.count, sent)
    return row.count
