"""Starts an execution at each tick: what goes on is the tick's instant, never the time at which it was handled."""

import msgspec

from headrace.sdk import Component

component = Component()


class Tick(msgspec.Struct):
    """`instant` is RFC 3339 in UTC, for example 2026-11-21T07:00:00.000Z; `every` the interval, for example 5s."""

    instant: str
    unix_ms: int
    every: str


@component.trigger
async def tick(tick: Tick) -> Tick:
    return tick
