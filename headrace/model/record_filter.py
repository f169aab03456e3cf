"""Which hops a person means: `step=price`, `outcome=retried AND duration>50ms`.

Terms are joined by AND (or a comma); one record must fit all of them. Names and operators:

    step component code outcome kind flow    = !=      (kind: webhook, tick, injected, listener; only roots have one)
    revision                                 = !=      number, or the beginning of the digest
    error                                    =         true: failed, retried, dead-lettered; false: none of it
    attempt status version deployment        = != < <= > >=
    duration                                 = != < <= > >=    with a unit: 50ms, 1.5s, 200us
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from headrace.model.errors import InvalidInput
from headrace.model.hop_record import HopRecord, Record

MAX_CHARACTERS = 1_000

Check = Callable[[Record], bool]

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_JOINT = re.compile(r"\s+(?:AND|and)\s+|\s*,\s*")
_TERM = re.compile(r'([a-z]+)\s*(!=|<=|>=|=|<|>)\s*("[^"]*"|[^\s"=<>!]+)')
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|m)")
_UNIT_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000, "m": 60_000_000_000}


def _outcome(record: Record) -> str:
    if isinstance(record, HopRecord):
        return record.outcome.value
    return "failed" if record.failed else "processed"


_TEXTS: dict[str, Callable[[Record], str]] = {
    "step": lambda record: record.site.step,
    "component": lambda record: record.site.component,
    "flow": lambda record: record.site.flow,
    "code": lambda record: record.code,
    "outcome": _outcome,
    "kind": lambda record: "" if isinstance(record, HopRecord) else record.kind,
}
_NUMBERS: dict[str, Callable[[Record], int]] = {
    "attempt": lambda record: record.attempt if isinstance(record, HopRecord) else 1,
    "status": lambda record: 0 if isinstance(record, HopRecord) else record.status,
    "version": lambda record: record.site.version,
    "deployment": lambda record: record.site.deployment,
    "duration": lambda record: record.duration_ns,
}
NAMES = (*_TEXTS, *_NUMBERS, "revision", "error")


class RecordFilter:
    """`fits(record)`; made by `parse_filter`. An empty one fits everything."""

    def __init__(self, text: str, checks: tuple[Check, ...]) -> None:
        self.text = text
        self._checks = checks

    def fits(self, record: Record) -> bool:
        """Whether the record fits every term."""
        return all(check(record) for check in self._checks)


def parse_filter(text: str, field: str = "filter") -> RecordFilter:
    """InvalidInput, naming `field`, for what is no filter."""
    if len(text) > MAX_CHARACTERS:
        raise InvalidInput.at(field, text, f"is longer than {MAX_CHARACTERS} characters")
    terms = _JOINT.split(text.strip()) if text.strip() else []
    return RecordFilter(text.strip(), tuple(_check(term.strip(), field, text) for term in terms))


def _check(term: str, field: str, whole: str) -> Check:
    match = _TERM.fullmatch(term)
    if match is None:
        problem = f"has a term that is none: {term!r}" if term else "has an empty term"
        raise InvalidInput.at(field, whole, problem, next_step="Write for example step=price AND duration>50ms")
    name, sign, value = match[1], match[2], match[3].strip('"')
    if name in _NUMBERS:
        return _number_check(name, sign, _number(name, value, field, whole))
    if name not in NAMES:
        raise InvalidInput.at(field, whole, f"asks for {name!r}", next_step=f"Use {', '.join(NAMES)}")
    if sign not in ("=", "!="):
        raise InvalidInput.at(field, whole, f"orders {name!r} by {sign}", next_step=f"Use {name}= or {name}!=")
    if name == "error":
        return _error_check(sign, value, field, whole)
    wanted = sign == "="
    if name == "revision":
        return lambda record: _is_revision(record, value) is wanted
    read = _TEXTS[name]
    value = value.lower() if name in ("outcome", "kind") else value
    return lambda record: (read(record) == value) is wanted


def _number_check(name: str, sign: str, number: int) -> Check:
    read, compare = _NUMBERS[name], _OPERATORS[sign]
    return lambda record: compare(read(record), number)


def _error_check(sign: str, value: str, field: str, whole: str) -> Check:
    if value not in ("true", "false"):
        raise InvalidInput.at(field, whole, "asks for error neither true nor false", next_step="Use error=true")
    wanted = (value == "true") is (sign == "=")
    return lambda record: record.failed is wanted


def _number(name: str, value: str, field: str, whole: str) -> int:
    if name == "duration":
        match = _DURATION.fullmatch(value)
        if match is None:
            raise InvalidInput.at(field, whole, f"has no duration at {value!r}", next_step="Use for example 50ms")
        return round(float(match[1]) * _UNIT_NS[match[2]])
    if not value.isascii() or not value.isdigit() or len(value) > 18:
        raise InvalidInput.at(field, whole, f"has no number at {value!r}", next_step=f"Use for example {name}=2")
    return int(value)


def _is_revision(record: Record, value: str) -> bool:
    site = record.site
    if value.isascii() and value.isdigit() and len(value) < 8:
        return site.revision_number == int(value)
    return bool(value) and site.revision.removeprefix("sha256:").startswith(value.removeprefix("sha256:"))
