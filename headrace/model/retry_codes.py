"""Which error codes a step's retry policy may name under `on`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from headrace.model.flow_spec import MAX_RETRIED_CODES

CODE_PATTERN = r"[A-Z][A-Z0-9_]{0,63}"
_CODE = re.compile(CODE_PATTERN)

OUTSIDE_THE_POLICY = {
    "OUTPUT_REFUSED": "the same output would be refused again",
    "EXPRESSION_FAILED": "the same expression would fail on the same output again",
    "PASSTHROUGH_TOO_LARGE": "the same outputs would be too large again",
    "COMPONENT_DIED": "a crash is tried again anyway, and given up when the message caused three",
    "MALFORMED_MESSAGE": "the message cannot be read at all",
    "REBOUND_LIMIT": "it says that the component asked for too many later tries",
    "SIDECAR_DIED": "the message ended its sidecar five times in a row, twice while nothing else ran",
}
"""Codes whose retry is not the policy's to decide, and why."""


def retried_codes_problem(codes: Sequence[object]) -> tuple[int, str] | None:
    """Index and text of the first thing wrong with `on`; index -1 for the list as a whole; None when all is well."""
    if len(codes) > MAX_RETRIED_CODES:
        return -1, f"{len(codes)} codes are more than {MAX_RETRIED_CODES}"
    for index, code in enumerate(codes):
        if not isinstance(code, str) or not _CODE.fullmatch(code):
            return index, f"{code!r} is not an error code (upper-case letters, digits and _, at most 64 characters)"
        if code in OUTSIDE_THE_POLICY:
            return index, f"{code!r} cannot be retried by policy: {OUTSIDE_THE_POLICY[code]}"
        if code in codes[:index]:
            return index, f"{code!r} stands twice"
    return None
