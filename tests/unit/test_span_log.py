"""The span log: lots in order, bounded, nothing lost unseen."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from headrace.edge.span_log import LOT, MAX_RECORDS, SpanLog
from headrace.model.hop_record import Record
from tests.support.eventually import eventually
from tests.unit.test_otlp_spans import hop


class Kept:
    def __init__(self) -> None:
        self.lots: list[list[Record]] = []

    def put(self, records: Sequence[Record]) -> None:
        self.lots.append(list(records))

    @property
    def attempts(self) -> list[int]:
        return [record.attempt for lot in self.lots for record in lot]  # type: ignore[union-attr]


async def test_lots_come_in_order_and_soon() -> None:
    kept = Kept()
    log = SpanLog(exporter=kept, hand_over_s=0.01)
    for turn in range(3):
        for number in range(LOT):
            log.add(hop(attempt=turn * LOT + number))
        await asyncio.sleep(0)
        assert len(kept.lots) == turn + 1  # at once under load
    log.add(hop(attempt=3 * LOT))
    await eventually(lambda: len(kept.lots) == 4)
    assert kept.attempts == list(range(3 * LOT + 1))
    assert log.counts.recorded == 3 * LOT + 1


async def test_what_finds_no_room_is_counted() -> None:
    kept = Kept()
    log = SpanLog(exporter=kept)
    for _ in range(MAX_RECORDS + 5):
        log.add(hop())
    log.hand_over()
    assert len(kept.attempts) == MAX_RECORDS
    assert log.counts.dropped == 5


async def test_a_tap_that_fails_costs_its_lot_only() -> None:
    kept = Kept()
    log = SpanLog(exporter=kept, hand_over_s=60.0)

    def fails(records: Sequence[Record]) -> None:
        raise RuntimeError("a tap")

    log.taps.append(fails)
    log.add(hop())
    log.hand_over()
    assert (log.counts.dropped, kept.lots) == (1, [])
    log.taps.clear()
    log.add(hop(sampled=False))
    log.add(hop())
    log.hand_over()
    assert (len(kept.attempts), log.counts.left_out) == (1, 1)
