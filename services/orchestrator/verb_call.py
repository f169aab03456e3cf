"""What every verb that begins an operation is called with, besides what it is about."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

LONGEST_WAIT_S = 600.0
# Of a call without a deadline; below the server's limit of such a call.
WITHOUT_DEADLINE_S = 50.0
# What is left of a caller's deadline for the verb itself.
MARGIN_S = 1.0


@dataclass(frozen=True, slots=True)
class VerbCall:
    """`wait_s`: how long it may wait for the operation at work on the flow; 0 to be refused then."""

    request_id: str = ""
    etag: str = ""
    wait_s: float = 0.0
    # All checks, nothing written.
    validate_only: bool = False


PLAIN_CALL = VerbCall()


def verb_call(request: Any, context: Any) -> VerbCall:
    """Of the request of a verb."""
    wait_s = 0.0
    if request.wait_for_running:
        left = context.time_remaining()
        wait_s = WITHOUT_DEADLINE_S if left is None else max(0.001, min(LONGEST_WAIT_S, left - MARGIN_S))
    validate_only = "validate_only" in request.DESCRIPTOR.fields_by_name and request.validate_only
    return VerbCall(request.request_id, request.etag, wait_s, validate_only)
