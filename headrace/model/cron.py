"""Cron schedules: five fields, or six with seconds first, in a time zone; parsed by cronsim.

Where the clock is put forward, a schedule with a fixed hour and minute that falls into the hour left out fires once,
right after it; where the clock is put back it fires the first time only. One whose hour or minute begins with `*` goes
by the time that passes: it fires in both of two equal hours, and not in one that is left out. Zone data is read once
per zone.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

NANOS = 1_000_000_000
DEFAULT_ZONE = "UTC"
MAX_CRON_CHARACTERS = 200
# What a zone may put its clock back by, and more.
_FOLD = timedelta(hours=3)


class CronSchedule(msgspec.Struct, frozen=True):
    """Checked by `cron_problem` and `zone_problem` before. Times are Unix nanoseconds."""

    cron: str
    zone: str = DEFAULT_ZONE

    def next_after(self, after_ns: int) -> int:
        """The first instant after that one."""
        return next(self._instants(after_ns))

    def between(self, after_ns: int, until_ns: int, most: int) -> tuple[list[int], bool]:
        """Instants after one time and up to another, in order: all of them, or (False) the newest `most`."""
        found: list[int] = []
        for instant in self._instants(after_ns):
            if instant > until_ns:
                return found, True
            found.append(instant)
            if len(found) > most:
                break
        newest: list[int] = []
        for instant in self._instants(until_ns + NANOS, reverse=True):
            if len(newest) == most:
                break
            if instant <= until_ns:
                newest.append(instant)
        return newest[::-1], False

    def _instants(self, start_ns: int, *, reverse: bool = False) -> Iterator[int]:
        """After the start, or before it, one by one."""
        zone = _zone(self.zone)
        start = datetime.fromtimestamp(start_ns // NANOS, UTC).astimezone(zone)
        last = start_ns
        for found in _moments(self.cron, start, zone, reverse=reverse):
            instant = int(found.timestamp()) * NANOS
            if (instant < last) if reverse else (instant > last):
                last = instant
                yield instant


def cron_problem(cron: str) -> str:
    """What is wrong with a schedule; empty when it fires now and then."""
    fields = len(cron.split())
    if len(cron) > MAX_CRON_CHARACTERS or fields not in (5, 6):
        return "has not five fields (minute hour day month weekday), nor six (second first)"
    from cronsim import CronSimError

    try:
        next(iter(_cronsim(cron, datetime(2026, 1, 1))))
    except CronSimError as error:
        which = str(error).removeprefix("Bad ")
        never = which == "day-of-month" and _days_are_numbers(cron)
        return "never fires: no month of it has such a day" if never else f"has a {which} that is none"
    except StopIteration:
        return "never fires"
    except (ValueError, OverflowError):
        return "is no cron schedule"
    return ""


def zone_problem(zone: str) -> str:
    """What is wrong with the name of a time zone; empty when there is such a zone."""
    try:
        _zone(zone)
    except (ValueError, KeyError, OSError):
        return "is not a time zone; write one like Europe/Berlin or UTC"
    return ""


def _days_are_numbers(cron: str) -> bool:
    days = cron.split()[-3]
    return all(part.isdigit() and 1 <= int(part) <= 31 for part in days.replace("-", ",").split(","))


def _cronsim(cron: str, start: datetime, *, reverse: bool = False) -> Any:
    from cronsim import CronSim

    return CronSim(cron, start, reverse=reverse)


def _moments(cron: str, start: datetime, zone: ZoneInfo, *, reverse: bool) -> Iterator[datetime]:
    minute, hour = cron.split()[-5:-3]
    if minute.startswith("*") or hour.startswith("*"):
        yield from _cronsim(cron, start, reverse=reverse)
        return
    # By the clock on the wall, then to the moment at which it shows that time.
    wall = start.replace(tzinfo=None)
    for shown in _cronsim(cron, wall + _FOLD if reverse else wall - _FOLD, reverse=reverse):
        moment = shown.replace(tzinfo=zone)
        while moment != moment.astimezone(UTC).astimezone(zone):  # the clock never shows it
            shown += timedelta(minutes=1)
            moment = shown.replace(tzinfo=zone)
        yield moment


@lru_cache(maxsize=64)
def _zone(name: str) -> ZoneInfo:
    from zoneinfo import ZoneInfo

    return ZoneInfo(name)
