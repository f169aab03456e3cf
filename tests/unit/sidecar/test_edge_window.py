"""A full edge gets one probe; a recovered one is not flooded; a crash loop is told from bad luck."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from services.sidecar.domain.crash_loop import HEALTHY_S, CrashRecord
from services.sidecar.domain.edge_window import EdgeWindow
from services.sidecar.domain.retry_delay import RESTART_MAX_S


@given(capacity=st.integers(1, 20), messages=st.integers(0, 200), drained=st.lists(st.integers(0, 5), max_size=50))
def test_every_message_gets_through_once_and_refusals_stay_few(
    capacity: int, messages: int, drained: list[int]
) -> None:
    """A bounded edge whose reader takes some messages now and then."""
    window = EdgeWindow()
    waiting = deque(range(messages))
    stored: list[int] = []
    edge = 0
    refused = 0
    for taken in [*drained, *[3] * (messages + 10)]:
        batch: list[int] = []
        if window.may_probe() and waiting:
            window.sent()
            batch.append(waiting.popleft())
        while waiting and window.may_send():
            window.sent()
            batch.append(waiting.popleft())
        back: list[int] = []
        for message in batch:
            if edge < capacity:
                edge += 1
                stored.append(message)
                window.stored(waiting=len(waiting) + len(back))
            else:
                refused += 1
                back.append(message)
                window.refused()
        waiting.extendleft(reversed(back))
        assert window.in_flight == 0
        edge = max(0, edge - taken)
    assert sorted(stored) == list(range(messages))


def test_while_an_edge_is_full_one_probe_is_under_way() -> None:
    window = EdgeWindow()
    for _ in range(10):
        window.sent()
    for _ in range(10):
        window.refused()
    assert not window.may_send()
    assert window.may_probe()
    window.sent()
    assert not window.may_probe()
    window.refused()
    assert window.may_probe()
    window.sent()
    window.stored(waiting=8)
    assert window.may_send()
    window.sent()
    window.sent()
    assert not window.may_send()
    window.stored(waiting=0)
    assert not window.recovering


def test_five_crashes_within_a_minute_without_a_message_are_a_loop() -> None:
    record = CrashRecord()
    delays = []
    for number in range(5):
        record.started(number * 1.0)
        assert not record.is_loop(number * 1.0)
        delays.append(record.crashed(number * 1.0 + 0.5))
    assert record.is_loop(5.0)
    assert delays == [0.1, 0.2, 0.4, 0.8, 1.6]
    record.started(6.0)
    assert not record.is_healthy(7.0)
    record.finished_message()
    assert record.is_healthy(7.0)
    assert not record.is_loop(7.0)


@given(st.lists(st.floats(0, 100), max_size=60))
def test_the_back_off_has_a_cap_and_forgets_after_health(lives_s: list[float]) -> None:
    record = CrashRecord()
    now = 0.0
    for life_s in lives_s:
        record.started(now)
        began, now = now, now + life_s
        delay_s = record.crashed(now)
        assert 0.1 <= delay_s <= RESTART_MAX_S
        if now - began >= HEALTHY_S:  # as a clock would measure it: sums of floats are rounded
            assert delay_s == 0.1
        now += delay_s
