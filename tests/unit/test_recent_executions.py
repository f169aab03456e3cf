"""What a process remembers of executions: bounded, whole for a while, the same choice everywhere."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from headrace.model.hop_record import HopOutcome, Record, ReplyPart
from headrace.model.recent_executions import RecentExecutions, is_chosen
from tests.support.records import PRICE, execution, hop, root


def test_what_was_packed_comes_back_as_it_was() -> None:
    recent = RecentExecutions(newest=0)
    records: list[Record] = [
        root(1)._replace(reply=ReplyPart(PRICE, "0123456789abcdef", 5, 9), link="00-x", duplicate=True),
        root(2, status=504, code="NO_REPLY"),
        hop(1),
        hop(1, sender=None, outcome=HopOutcome.RETRIED, code="NO_PRICE", attempt=2),
    ]
    recent.note(records, 0.0)
    assert recent.of([execution(1)]) == [records[0], records[2], records[3]]
    assert recent.of([execution(2)]) == [records[1]]
    assert list(recent.all()) == records[::-1]
    assert recent.of([execution(3)]) == []


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 10))
def test_packed_and_newest_are_one_memory(numbers: list[int], newest: int) -> None:
    recent = RecentExecutions(newest=newest)
    for number in numbers:
        recent.note([hop(number)], 0.0)
    assert len(recent.of([execution(0), execution(1)])) == sum(number < 2 for number in numbers)


def test_it_is_bounded_in_number_and_bytes() -> None:
    recent = RecentExecutions(newest=100, packed=1_000)
    for second in range(20):
        recent.note([hop(second * 1_000 + each) for each in range(1_000)], float(second))
    assert len(recent) <= 1_100
    assert recent.packed_bytes < 1_000 * 400


def test_under_load_one_in_some_stays_whole_and_all_processes_choose_the_same() -> None:
    busy, calmer = RecentExecutions(newest=10, packed=4_000), RecentExecutions(newest=10, packed=4_000)
    for tick in range(600):
        lot = [hop(tick * 40 + each) for each in range(40)]
        busy.note(lot, tick * 0.2)
        calmer.note(lot[::4], tick * 0.2)
    assert busy.level > calmer.level > 0
    for level in range(1, busy.level + 1):
        chosen = {number for number in range(1_000) if is_chosen(execution(number), level)}
        assert chosen <= {number for number in range(1_000) if is_chosen(execution(number), level - 1)}
    stayed = {record.execution_id for record in busy.all()}
    old = [number for number in range(14_000, 23_000) if is_chosen(execution(number), busy.level)]
    assert old
    assert all(execution(number) in stayed for number in old), "two minutes' worth of what is chosen is there"


def test_failures_and_what_was_asked_for_stay_under_load() -> None:
    recent = RecentExecutions(newest=10, packed=1_000)
    dice = random.Random(3)
    failed = []
    for tick in range(100):
        lot: list[Record] = [hop(tick * 100 + each) for each in range(100)]
        if dice.random() < 0.1:
            failed.append(tick * 100)
            lot[0] = hop(tick * 100, outcome=HopOutcome.DEAD_LETTERED, code="NO_PRICE")
        if tick == 50:
            recent.mark([execution(tick * 100 + 7)])
        recent.note(lot, tick * 0.2)
    late = [number for number in failed if number > 3_000]
    assert late
    assert all(recent.of([execution(number)]) for number in late)
    assert recent.of([execution(5_007)])
