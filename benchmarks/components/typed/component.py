"""Decodes JSON into a typed value, changes it and encodes it again."""

import msgspec

from headrace.sdk import Component

component = Component()


class Reading(msgspec.Struct):
    """About 256 bytes of JSON."""

    id: int
    hops: int
    sensor: str
    values: list[float]
    note: str


@component.trigger
async def start(reading: Reading) -> Reading:
    reading.hops += 1
    return reading


@component.action
async def relay(reading: Reading) -> Reading:
    reading.hops += 1
    return reading
