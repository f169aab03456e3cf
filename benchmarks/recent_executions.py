"""What the memory of recent executions costs: bytes of a full one, microseconds of a record, quiet and under load."""

from __future__ import annotations

import gc
import time
import tracemalloc
from collections.abc import Iterator
from typing import Any

from headrace.model import message_ids
from headrace.model.hop_record import HopOutcome, HopRecord, Site
from headrace.model.recent_executions import NEWEST, PACKED, RecentExecutions
from headrace.model.sampling import TailRules

LOT_S = 0.2
QUIET_PER_S, LOADED_PER_S = 40, 10_000
RECORDS = 60_000


def records(count: int) -> Iterator[HopRecord]:
    """Of as many executions; texts and numbers of their own, as they come from the path."""
    site, sender = (Site(name, "default", "orders", 1, 1, name, name, "sha256:" + "a" * 64, 1, name) for name in "ab")
    now = time.time_ns()
    for number in range(count):
        message, execution = (message_ids.execution_id(f"{kind}{number}") for kind in "me")
        mono = number * 100_000
        yield HopRecord(
            site, sender, execution, message[:16], message[16:], True, message, execution, 1, True, 1, False, 1, False,
            HopOutcome.PROCESSED, "", "", 0, -1, now + mono - 900, now + mono, now + mono + 900, mono, mono, mono + 9,
            mono + 400, mono + 500, mono + 900,
        )  # fmt: skip


def recent_executions() -> dict[str, Any]:
    """Of one process."""
    lots = list(records(RECORDS))
    rules = TailRules()
    began = time.process_time_ns()
    for record in lots:
        rules.reason(record)
    rules_us = (time.process_time_ns() - began) / 1000 / RECORDS
    quiet_us, _ = _noted(lots[:20_000], QUIET_PER_S)
    loaded_us, loaded = _noted(lots, LOADED_PER_S)
    del lots
    return {
        "records": NEWEST + PACKED,
        "full_mb": round(_full_bytes() / 1e6, 2),
        "note_us_quiet": round(quiet_us, 2),
        "note_us_loaded": round(loaded_us, 2),
        "tail_rules_us": round(rules_us, 2),
        "one_in_loaded": 2**loaded.level,
        "question_ms": round(_question_ms(loaded), 2),
    }


def _noted(lots: list[HopRecord], per_s: int) -> tuple[float, RecentExecutions]:
    """Microseconds a record at a rate."""
    recent, size = RecentExecutions(), max(1, round(per_s * LOT_S))
    began = time.process_time_ns()
    for number, first in enumerate(range(0, len(lots), size)):
        recent.note(lots[first : first + size], number * LOT_S)
    return (time.process_time_ns() - began) / 1000 / len(lots), recent


def _full_bytes() -> int:
    """What one holds when it is full, records that are kept as they are included."""
    gc.collect()
    tracemalloc.start()
    recent, before = RecentExecutions(), tracemalloc.get_traced_memory()[0]
    for number, record in enumerate(records(NEWEST + PACKED)):
        recent.note([record], number / QUIET_PER_S)
    del record
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert len(recent) == NEWEST + PACKED
    return held


def _question_ms(recent: RecentExecutions) -> float:
    began = time.process_time_ns()
    recent.of([message_ids.execution_id("e7")])
    return (time.process_time_ns() - began) / 1e6
