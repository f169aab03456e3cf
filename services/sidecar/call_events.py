"""What the events of a running call leave on its input, within its bounds; and how the call ended by them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from headrace.model.limits import MAX_BODY_BYTES
from headrace.model.step_snapshot import MAX_SAVES, MAX_SNAPSHOT_BYTES, Save
from services.sidecar.domain.delivery import DONE, Ending, Outcome, Problem, check_output, check_reply, error_status
from services.sidecar.domain.snapshot_problems import REFUSED, TOO_MANY
from services.sidecar.held_input import HeldInput

MAX_PROBLEM_CHARACTERS = 4_000
MAX_CODE_CHARACTERS = 64
MAX_COMMON_CONTENT_TYPE = 256


class PlainEmit(msgspec.Struct, eq=False):
    """An output that has nothing but a body and a media type; stands where an `Emit` does."""

    body: bytes
    content_type: str
    headers: Mapping[str, str] = {}
    key: str = ""
    attachments: Sequence[Any] = ()


def note_event(held: HeldInput, event: Any, kind: str | None) -> bool:
    """Takes an event of a running call; False if it is of no use (it has no kind, or comes after the output that
    was one too many or too large)."""
    if kind == "data":
        return note_output(held, event.data)
    held.plain = False
    if kind == "reply":
        problem = check_reply(len(event.reply.body), event.reply.status, other_bytes(event.reply))
        held.refused = held.refused or problem
        if held.reply is None:
            held.reply = event.reply
            held.attached = held.attached or event.reply.HasField("large_body")
    elif kind == "error":
        held.failure = event.error
    elif kind == "rebound":
        held.rebound = event.rebound
    elif kind == "snapshot":
        return _save(held, event.snapshot)
    else:
        return False
    return True


def note_output(held: HeldInput, emit: Any) -> bool:
    """Takes an output of a running call; False if it is of no use."""
    headers = emit.headers
    if held.plain:
        if held.outputs or emit.key or emit.attachments:
            held.plain = False
        elif not headers and take_only_output(held, emit.body, emit.content_type):
            return True
    if held.refused is not None:
        return False
    body, rest = len(emit.body), other_bytes(emit)
    held.refused = check_output(len(held.outputs), body, rest, held.output_bytes)
    if held.refused is None:
        held.outputs.append(emit)
        if emit.attachments:
            held.attached = True
        held.output_bytes += body + rest
    else:
        held.plain = False
        held.outputs = []  # the attempt fails: no need to keep them
    return True


def take_only_output(held: HeldInput, body: bytes, content_type: str) -> bool:
    """Takes the first output of a plain call, if that is but a body, and of a size that needs no judging."""
    size = len(body) + len(content_type)
    if held.outputs or not held.plain or size > MAX_BODY_BYTES or len(content_type) > MAX_COMMON_CONTENT_TYPE:
        return False
    held.outputs.append(PlainEmit(body, content_type))
    held.output_bytes = size
    return True


def _save(held: HeldInput, snapshot: Any) -> bool:
    if held.refused is not None:
        return False
    if len(held.saves) >= MAX_SAVES:
        held.refused = TOO_MANY
    elif len(snapshot.json) > MAX_SNAPSHOT_BYTES:
        held.refused = Problem(
            REFUSED, f"the snapshot has {len(snapshot.json)} characters, more than {MAX_SNAPSHOT_BYTES} bytes"
        )
    else:
        revision = snapshot.if_revision if snapshot.HasField("if_revision") else None
        held.saves.append(Save(snapshot.json.encode(), snapshot.merge, revision))
        return True
    held.saves = []
    return True


def outcome_of(held: HeldInput) -> Outcome:
    """What the events of a call that has ended come to."""
    if held.failure is not None:
        failure = held.failure
        problem = Problem(
            failure.code[:MAX_CODE_CHARACTERS] or "COMPONENT_ERROR",
            failure.message[:MAX_PROBLEM_CHARACTERS] or "the component failed",
            error_status(failure.status),
        )
        refused = problem.code == "OUTPUT_REFUSED"  # by the SDK, which knows what could not be encoded
        return Outcome(Ending.OUTPUT_REFUSED if refused else Ending.FAILED, problem, retryable=failure.retryable)
    if held.rebound is not None:
        return Outcome(Ending.REBOUND, asked_delay_ms=held.rebound.delay_ms)
    if held.refused is not None:
        return Outcome(Ending.OUTPUT_REFUSED, held.refused)
    return DONE


def other_bytes(emit: Any) -> int:
    """Bytes of an emit or reply beside its body: headers, content type, key. Cheap where there are none."""
    size = len(emit.content_type) + len(getattr(emit, "key", ""))
    headers = emit.headers
    return size + sum(len(name) + len(headers[name]) for name in headers) if headers else size
