"""Rates as people write them (`100/s`, `30/m`, `5/h`), turned into messages per second in one place."""

from __future__ import annotations

import re

from headrace.model.errors import InvalidInput
from headrace.model.flow_spec import MAX_RATE, MIN_RATE

RATE_PATTERN = r"([0-9]+(?:\.[0-9]+)?)/([smh])"
_RATE = re.compile(RATE_PATTERN)
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


def parse_rate(field: str, value: object) -> float:
    """Messages per second of `100/s`, `30/m` or `5/h`; 1/h to 100000/s. InvalidInput names the field."""
    match = _RATE.fullmatch(value.strip().replace(" ", "")) if isinstance(value, str) else None
    if match is None:
        next_step = "Write a number and a unit of time: 100/s, 30/m or 5/h; leave it out for no limit"
        raise InvalidInput.at(field, value, "is not a rate", next_step=next_step)
    rate = float(match[1]) / _SECONDS[match[2]]
    if not MIN_RATE * 0.999_999 <= rate <= MAX_RATE:
        next_step = "Leave it out for no limit; to take nothing, suspend or stop the flow"
        raise InvalidInput.at(field, value, "is not between 1/h and 100000/s", next_step=next_step)
    return rate


def format_rate(rate: float) -> str:
    """The spelling in the smallest unit that keeps it a number of 1 or more: 0.5 -> `30/m`."""
    for unit, seconds in _SECONDS.items():
        count = rate * seconds
        if count >= 0.999_999 or unit == "h":
            return f"{round(count, 6):.12g}/{unit}"
    raise AssertionError("unreachable")


def rate_text(rate: float) -> str:
    """As `format_rate`; `none` for 0."""
    return format_rate(rate) if rate else "none"
