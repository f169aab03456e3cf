"""Durations as people write them (`200ms`, `10s`, `2m`, `1h`), turned into seconds in one place."""

from __future__ import annotations

import re

from headrace.model.errors import InvalidInput

DURATION_PATTERN = r"([0-9]+(?:\.[0-9]+)?)(ms|s|m|h)"
_DURATION = re.compile(DURATION_PATTERN)
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
MAX_DURATION_S = 30 * 86_400.0


def parse_duration(field: str, value: object) -> float:
    """Seconds of `200ms`, `10s`, `1.5s`, `2m` or `1h`; at most 30 days. InvalidInput names the field.

    A bare number is refused: its unit would be a guess.
    """
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise InvalidInput.at(
            field, value, "is not a duration", next_step="Write a number and a unit: 200ms, 10s, 2m or 1h"
        )
    # Division keeps whole milliseconds exact to the last digit (200ms is 0.2, not 0.2000000001).
    number, unit = float(match[1]), match[2]
    seconds = number / 1000 if unit == "ms" else number * _SECONDS[unit]
    if seconds > MAX_DURATION_S:
        raise InvalidInput.at(field, value, "is longer than 30 days", next_step="Use at most 720h")
    return seconds


def format_duration(seconds: float) -> str:
    """The shortest exact spelling: 0.2 -> `200ms`, 120 -> `2m`."""
    millis = round(seconds * 1000)
    for unit, size in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if millis and millis % size == 0:
            return f"{millis // size}{unit}"
    return f"{millis}ms"
