"""The traceparent of a stimulus (W3C Trace Context, version 00)."""

from __future__ import annotations

import re

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}(-.*)?")


def is_valid_traceparent(value: str) -> bool:
    """Lower-case hex, not all zero, a version other than ff; version 00 has four fields exactly."""
    match = _TRACEPARENT.fullmatch(value)
    if match is None or value.startswith("ff"):
        return False
    if value.startswith("00") and match[3] is not None:
        return False
    return match[1] != "0" * 32 and match[2] != "0" * 16


def stimulus_traceparent(given: str, *, execution: str, message_id: str) -> str:
    """The caller's if it is valid, else one whose trace id is the execution id.

    A caller's traceparent is the trace's parent only; it never feeds an id (DESIGN section 1).
    """
    if given and is_valid_traceparent(given):
        return "00" + given[2:55]
    return f"00-{execution}-{message_id[:16]}-01"
