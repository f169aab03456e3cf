"""What one process keeps of executions that were not sampled, without a broker: what others say is put in by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.edge.span_log import SpanLog
from headrace.edge.trace_keeper import MAX_KEPT, TraceKeeper
from headrace.model.hop_record import Exportable, HopOutcome, Record
from headrace.model.recent_executions import NEWEST
from headrace.model.sampling import Sampling
from tests.support.records import execution, hop, root


class Taken:
    """An exporter that remembers."""

    def __init__(self) -> None:
        self.records: list[Exportable] = []

    def put(self, records: Sequence[Exportable]) -> None:
        self.records += records

    def spans_of(self, number: int) -> list[str]:
        return [record.span_id for record in self.records if getattr(record, "execution_id", "") == execution(number)]


class Process:
    """The span log of one process with its keeper."""

    def __init__(self) -> None:
        self.taken = Taken()
        self.log = SpanLog(exporter=self.taken)
        self.keeper = TraceKeeper(self.log, "default", "orders", "here")
        self.keeper._changed("orders", Sampling(ratio=0.0))
        self.lot(hop(10**6, took_ns=10**12), root(10**6, took_ns=10**12))  # nothing is slower
        self.taken.records.clear()

    def lot(self, *records: Record) -> None:
        for record in records:
            self.log.add(record)
        self.log.hand_over()

    def told_to_keep(self, *numbers: int) -> None:
        self.keeper._asked.update(dict.fromkeys(map(execution, numbers)))
        self.keeper._keep_asked()


FAILED = {"outcome": HopOutcome.DEAD_LETTERED, "code": "NO_PRICE"}


async def test_what_is_dull_is_not_sent_and_what_is_flagged_is() -> None:
    process = Process()
    process.lot(hop(1), root(1), hop(2, sampled=True))
    assert process.taken.records == [hop(2, sampled=True)]
    assert not process.keeper.begins("orders", execution(1))
    assert process.keeper.begins("others", execution(1))


async def test_a_failure_brings_what_came_before_and_what_comes_after() -> None:
    process = Process()
    process.lot(root(1), root(2))
    process.lot(hop(1, **FAILED))  # type: ignore[arg-type]
    process.lot(hop(1)._replace(span_id="f" * 16), hop(2))
    assert sorted(process.taken.spans_of(1)) == sorted([root(1).span_id, hop(1).span_id, "f" * 16])
    assert process.taken.spans_of(2) == []


async def test_what_others_ask_for_is_sent_once() -> None:
    process = Process()
    process.lot(root(1), hop(1))
    process.told_to_keep(1, 3)
    process.told_to_keep(1)
    process.lot(hop(3))
    assert process.taken.spans_of(1) == [root(1).span_id, hop(1).span_id]
    assert process.taken.spans_of(3) == [hop(3).span_id]


@pytest.mark.parametrize("count", [NEWEST // 2, NEWEST + 500, MAX_KEPT + 700])
async def test_every_failure_of_a_large_lot_is_sent(count: int) -> None:
    process = Process()
    process.lot(*(hop(number, **FAILED) for number in range(count)))  # type: ignore[arg-type]
    assert len(process.taken.records) == count
    assert len({record.span_id for record in process.taken.records}) == count  # type: ignore[union-attr]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 8), st.booleans(), st.booleans()), max_size=60), st.integers(1, 9))
async def test_nothing_is_sent_twice_and_no_failure_is_missed(made: list[tuple[int, bool, bool]], size: int) -> None:
    process = Process()
    records: list[Record] = []
    for place, (number, fails, sampled) in enumerate(made):
        more = FAILED if fails else {}
        records.append(hop(number, sampled=sampled, **more)._replace(span_id=f"{place:016x}"))  # type: ignore[arg-type]
    for first in range(0, len(records), size):
        process.lot(*records[first : first + size])
        process.told_to_keep(3)
    sent = [record.span_id for record in process.taken.records]  # type: ignore[union-attr]
    assert len(sent) == len(set(sent))
    failed = {record.execution_id for record in records if record.failed and not record.sampled}
    whole = {record.span_id for record in records if record.execution_id in failed or record.sampled}
    assert whole <= set(sent)
    kept = failed | {execution(3)}
    assert set(sent) <= whole | {record.span_id for record in records if record.execution_id in kept}
