"""Starts an execution at each tick: what goes on is the tick's instant, never the time at which it was handled."""

import msgspec

from headrace.sdk import Component

component = Component()


class Tick(msgspec.Struct, omit_defaults=True):
    """`instant` is RFC 3339 in UTC, for example 2026-11-21T07:00:00.000Z; `every` the interval, for example 5s,
    or `cron` the schedule with its zone. `run_now`: a person asked for this tick."""

    instant: str
    unix_ms: int
    every: str = ""
    cron: str = ""
    time_zone: str = ""
    run_now: bool = False


@component.trigger
async def tick(tick: Tick) -> Tick:
    return tick
