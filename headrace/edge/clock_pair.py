"""The wall clock and CLOCK_MONOTONIC at the same moment, however busy the machine is."""

from __future__ import annotations

import time

MOST_APART_NS = 2_000
TRIES = 4


def read_clocks() -> tuple[int, int]:
    """Unix and monotonic nanoseconds. A process that loses its processor between two readings reads again: what is
    measured from one clock to the other would else hold that wait."""
    before = time.monotonic_ns()
    unix_ns, after = time.time_ns(), time.monotonic_ns()
    tries = 1
    while after - before > MOST_APART_NS and tries < TRIES:
        tries += 1
        before = time.monotonic_ns()
        unix_ns, after = time.time_ns(), time.monotonic_ns()
    return unix_ns, after
