"""Cron schedules against a walk through every second, where the clock changes too; and what is made up for."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.cron import CronSchedule, cron_problem, zone_problem
from services.orchestrator.domain.tick_plan import CATCH_UP_NS, MAX_MADE_UP, NANOS, TimerSpec, due, next_tick

BERLIN = ZoneInfo("Europe/Berlin")


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * NANOS


def walk(cron: str, start: str, count: int) -> list[str]:
    schedule, at, found = CronSchedule(cron, "Europe/Berlin"), ns(start), []
    for _ in range(count):
        at = schedule.next_after(at)
        found.append(datetime.fromtimestamp(at // NANOS, BERLIN).strftime("%d. %H:%M:%S%z"))
    return found


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 30 2 * * *"])
def test_a_fixed_time_that_the_clock_leaves_out_comes_right_after(cron: str) -> None:
    assert walk(cron, "2026-03-28T12:00+01:00", 2) == ["29. 03:00:00+0200", "30. 02:30:00+0200"]


@pytest.mark.parametrize("cron", ["30 2 * * *", "0 30 2 * * *"])
def test_a_fixed_time_that_the_clock_repeats_comes_once(cron: str) -> None:
    assert walk(cron, "2026-10-24T12:00+02:00", 2) == ["25. 02:30:00+0200", "26. 02:30:00+0100"]
    assert walk(cron, "2026-10-25T02:10+01:00", 1) == ["26. 02:30:00+0100"]


def test_a_step_goes_on_through_both_hours() -> None:
    hours = walk("*/30 * * * *", "2026-10-25T01:45+02:00", 5)
    assert hours == ["25. 02:00:00+0200", "25. 02:30:00+0200", "25. 02:00:00+0100", "25. 02:30:00+0100",
                     "25. 03:00:00+0100"]  # fmt: skip
    assert walk("*/30 * * * *", "2026-03-29T01:15+01:00", 2) == ["29. 01:30:00+0100", "29. 03:00:00+0200"]


STARTS = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 31)) | st.sampled_from(
    [datetime(2026, 3, 29, 0, 30), datetime(2026, 10, 25, 0, 15), datetime(2026, 10, 25, 1, 5)]
)
CRONS = st.sampled_from(
    ["30 2 * * *", "15,45 2 * * *", "*/20 * * * *", "0 */2 * * *", "*/10 * 2 * * *", "5 4 3 2 * *", "0 3 L * *"]
)


@given(CRONS, STARTS, st.integers(1, 20 * 86_400))
def test_between_finds_what_next_after_walks_through(cron: str, start: datetime, seconds: int) -> None:
    schedule = CronSchedule(cron, "Europe/Berlin")
    begin = int(start.replace(tzinfo=UTC).timestamp()) * NANOS
    until = begin + seconds * NANOS
    walked, at = [], begin
    while len(walked) <= 200 and (at := schedule.next_after(at)) <= until:
        walked.append(at)
    found, complete = schedule.between(begin, until, 100)
    if len(walked) <= 100:
        assert (found, complete) == (walked, True)
    else:
        assert not complete
        assert len(found) == 100
        assert found == sorted(set(found))
        assert schedule.next_after(found[-1]) > until
    assert all(second > first for first, second in pairwise(found))


NOW = ns("2026-11-21T12:00:00+00:00")


@pytest.mark.parametrize(
    ("catch_up", "lag", "sent", "skipped"),
    [
        ("latest", timedelta(days=3), 1, 2),
        ("none", timedelta(days=3), 0, 3),
        ("all", timedelta(days=3), 3, 0),
        ("latest", timedelta(hours=1), 0, 0),
    ],
)
def test_after_an_outage(catch_up: str, lag: timedelta, sent: int, skipped: int) -> None:
    spec = TimerSpec("f", "s", "s", 0, 0, 0, schedule=CronSchedule("0 6 * * *"), catch_up=catch_up)
    settled = NOW - int(lag.total_seconds()) * NANOS
    found = due(spec, settled, NOW, 100)
    assert (len(found.instants), found.skipped) == (sent, skipped)
    assert found.next_ns == ns("2026-11-22T06:00:00+00:00") == next_tick(spec, settled, NOW)
    assert found.skipped_to_ns <= (found.instants[0] if found.instants else NOW)
    again = due(spec, found.instants[-1] if found.instants else found.skipped_to_ns, NOW, 100)
    assert (again.instants, again.skipped) == ((), 0)


@given(st.integers(1, 50_000), st.sampled_from(["latest", "none", "all"]), st.sampled_from([0, 5]))
def test_whatever_is_missed_is_sent_or_skipped_once(seconds: int, catch_up: str, every_s: int) -> None:
    """A schedule every five seconds and an interval of five do the same."""
    schedule = None if every_s else CronSchedule("*/5 * * * * *")
    spec = TimerSpec("f", "s", "s", every_s * NANOS, 0, 0, schedule=schedule, catch_up=catch_up)
    settled, sent, skipped = NOW - seconds * NANOS, [], 0
    for _ in range(40):
        found = due(spec, settled, NOW, 100)
        sent += found.instants
        skipped += found.skipped
        settled = found.instants[-1] if found.instants else found.skipped_to_ns
        if found.next_ns > NOW:
            break
    owed = len([n for n in range(NOW - seconds * NANOS + NANOS, NOW + 1, NANOS) if n // NANOS % 5 == 0])
    assert sent == sorted(set(sent))
    assert len(sent) + skipped == owed or (len(sent) + skipped < owed and schedule is not None and owed > MAX_MADE_UP)
    late = [instant for instant in sent if instant < NOW - CATCH_UP_NS]
    assert len(late) <= {"latest": 1, "none": 0, "all": MAX_MADE_UP}[catch_up]
    if catch_up == "all":
        assert len(sent) == min(owed, MAX_MADE_UP)


def test_what_is_no_schedule_and_no_zone() -> None:
    assert cron_problem("0 0 30 2 *") == "never fires: no month of it has such a day"
    assert cron_problem("0 0 32 * *") == "has a day-of-month that is none"
    assert cron_problem("* * * *").startswith("has not five fields")
    assert [cron_problem(cron) for cron in ("0 0 * 2 MON#5", "0 0 LW * *", "0 0 29 2 *", "@daily")][:3] == ["", "", ""]
    assert [zone_problem(zone) for zone in ("UTC", "America/New_York")] == ["", ""]
    assert all(zone_problem(zone) for zone in ("", "Mars/Base", "../etc/passwd", "europe/berlin "))
