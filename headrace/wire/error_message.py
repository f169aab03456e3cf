"""The message that an error step gets: what failed, with what, and how often it was tried; as JSON.

Made by the sidecar of the step that failed (and by the flow harness of tests).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.model.limits import MAX_BODY_BYTES

if TYPE_CHECKING:
    from headrace.wire.envelope import FailedAttempt

OUTPUT = "error"
"""In place of an output's index, in the id of the message to the error step."""
CONTENT_TYPE = "application/json"
MAX_TEXT = 2_000
"""Characters of the error's text."""


@dataclass(frozen=True, slots=True)
class FailedInput:
    """What a step failed for good, and which step of which code."""

    body: bytes
    content_type: str
    message_id: str
    execution_id: str
    step: str
    component: str
    revision: str
    attempts: Sequence[FailedAttempt]
    elsewhere: int = 0
    """Bytes of a body that is not in the message, but in the store of attachments."""


def error_body(failed: FailedInput, code: str, message: str, status: int) -> tuple[bytes, bool]:
    """The body, and whether the input is in it: one that makes it more than 512 KiB, or is in the store of attachments,
    is left out (`input` is null, `input_omitted` true)."""
    shown: dict[str, Any] = {
        "error": {"code": code, "message": message[:MAX_TEXT], "status": status},
        "input": None,
        "step": failed.step,
        "revision": failed.revision,
        "attempts": [_attempt(attempt) for attempt in failed.attempts],
        "component": failed.component,
        "execution": failed.execution_id,
        "message": failed.message_id,
        "input_content_type": failed.content_type,
        "input_size": len(failed.body) + failed.elsewhere,
        "input_omitted": False,
    }
    if not failed.elsewhere and len(failed.body) <= MAX_BODY_BYTES:
        whole = msgspec.json.encode(shown | {"input": shown_input(failed.body, failed.content_type)})
        if len(whole) <= MAX_BODY_BYTES:
            return whole, True
    return msgspec.json.encode(shown | {"input_omitted": True}), False


def shown_input(body: bytes, content_type: str) -> Any:
    """A body as JSON: itself where it is JSON (and not `text/...`), else its text, else `{"base64": ...}`; None where
    it is empty."""
    if not body:
        return None
    try:
        text = body.decode()
    except UnicodeDecodeError:
        return {"base64": b64encode(body).decode()}
    if not content_type.strip().lower().startswith("text/"):
        try:
            return msgspec.json.decode(body, type=msgspec.Raw)  # checked, and passed on as it is written
        except (msgspec.DecodeError, RecursionError):
            pass
    return text


def _attempt(attempt: FailedAttempt) -> dict[str, Any]:
    moment = datetime.fromtimestamp(attempt.at_unix_ns / 1e9, UTC).isoformat(timespec="milliseconds")
    return {
        "attempt": attempt.attempt,
        "code": attempt.code,
        "message": attempt.message,
        "time": moment.replace("+00:00", "Z"),
    }
