"""What messages of a flow with `passthrough` carry of the steps before: by value, up to a bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headrace.model.limits import MAX_PASSTHROUGH_BYTES
from headrace.wire.envelope import Attachment, Passed
from services.sidecar.domain.delivery import Problem

CODE = "PASSTHROUGH_TOO_LARGE"


class PassedByReference:
    """An emit that goes as it is, and is passed through by a reference to its body."""

    __slots__ = ("attachments", "body", "content_type", "headers", "key", "passed_as")

    def __init__(self, emit: Any, body: Attachment) -> None:
        self.body, self.content_type, self.headers = emit.body, emit.content_type, emit.headers
        self.key, self.attachments = emit.key, emit.attachments
        self.passed_as = Passed(content_type=emit.content_type, headers=emit.headers)
        self.passed_as.attachments.extend([*emit.attachments, body])


def with_own(passed: Sequence[Passed], step: str, emit: Any) -> list[Passed]:
    """What an output of the step carries: what its input carried, and the output itself as it was emitted."""
    original = getattr(emit, "original", emit)
    original = getattr(original, "passed_as", original)
    own = Passed(step=step, body=original.body, content_type=original.content_type, headers=original.headers)
    if original.attachments:
        own.attachments.extend(original.attachments)
    return [*passed, own]


def passthrough_problem(passed: Sequence[Passed], step: str, emits: Sequence[Any]) -> Problem | None:
    """Why the outputs of an input cannot carry what they would have to, or None."""
    before = sum(item.ByteSize() for item in passed)
    for index, emit in enumerate(emits):
        emit = getattr(emit, "passed_as", emit)
        headers = sum(len(name) + len(value) for name, value in emit.headers.items())
        size = before + len(emit.body) + len(emit.content_type) + headers
        if size > MAX_PASSTHROUGH_BYTES:
            sizes = ", ".join(f"{item.step} {len(item.body)}" for item in passed)
            text = (
                f"output {index} of step {step!r} would carry {size} bytes of steps' outputs (passthrough), more than "
                f"{MAX_PASSTHROUGH_BYTES}: {sizes}{', ' if sizes else ''}{step} {len(emit.body)}. Emit less, or take "
                "passthrough out of the flow"
            )
            return Problem(CODE, text)
    return None
