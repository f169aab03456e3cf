"""Dead letters and their counts as messages of `headrace.api.deadletter.v1`."""

from __future__ import annotations

from headrace.api.deadletter.v1 import dead_letter_pb2
from services.orchestrator.domain.dead_letters import LetterLimits, LettersView, pushed_out
from services.orchestrator.domain.letter_edit import LetterEdit
from services.orchestrator.domain.letter_ledger import LetterLedger
from services.orchestrator.letter_replay import Replayed, letter_name
from services.orchestrator.letter_store import Letter

DEFAULT_BODY = 64 * 1024
MAX_BODY = 512 * 1024
# Of the last error, in a list.
SHORT_ERROR = 500


def letter_message(letter: Letter, ledger: LetterLedger) -> dead_letter_pb2.DeadLetter:
    """As in a list: what it is, without what may be long."""
    content, original = letter.content, letter.content.original
    message = dead_letter_pb2.DeadLetter(
        name=letter_name(content.flow, letter.number),
        flow=f"flows/{content.flow}",
        step=content.step,
        reason=content.reason,
        error=content.attempts[-1].message[:SHORT_ERROR] if content.attempts else "",
        deployment=content.deployment,
        version=content.version,
        revision=content.revision,
        execution_id=original.execution_id,
        message_id=original.id,
        sender=original.sender,
        attempt_count=content.attempt_count or len(content.attempts),
        content_type=original.content_type,
        body_size=len(original.body),
        replay_in_doubt=letter.number in ledger.in_doubt,
        unreadable=content.unreadable,
        trace_id=trace_id(content.traceparent),
    )
    message.time.FromNanoseconds(content.at_unix_ns)
    message.attachments.extend(original.attachments)
    return message


def whole_letter(
    letter: Letter, ledger: LetterLedger, max_body: int, edit: LetterEdit | None, etag: str
) -> dead_letter_pb2.DeadLetter:
    """With all there is; the original's body up to a bound."""
    message, content = letter_message(letter, ledger), letter.content
    message.body = content.original.body[:max_body]
    message.body_truncated = len(content.original.body) > max_body
    message.headers.update(content.original.headers)
    for item in content.attempts:
        attempt = message.attempts.add(attempt=item.attempt, code=item.code, message=item.message)
        attempt.time.FromNanoseconds(item.at_unix_ns)
    message.pins.update(content.pins)
    message.traceparent = content.traceparent
    message.parent_id = content.original.parent_id
    message.etag = etag
    if edit is not None:
        message.edit.body, message.edit.content_type = edit.body, edit.content_type
        message.edit.headers.update(edit.headers)
        message.edit.editor = edit.editor
        message.edit.time.FromNanoseconds(int(edit.at * 1e9))
    return message


def counts_message(
    view: LettersView | None, ledger: LetterLedger, limits: LetterLimits
) -> dead_letter_pb2.DeadLetterCounts:
    """All zero where the flow was never started."""
    message = dead_letter_pb2.DeadLetterCounts(
        replayed=ledger.replayed,
        discarded=ledger.discarded,
        replay_in_doubt=len(ledger.in_doubt),
        max_count=limits.count,
        max_bytes=limits.size,
    )
    message.max_age.FromSeconds(int(limits.age_s))
    if view is not None:
        message.waiting, message.bytes, message.total = view.kept, view.size, view.stored
        message.pushed_out = pushed_out(view, ledger)
        if view.oldest_at:
            message.oldest_time.FromJsonString(view.oldest_at)
    return message


def replay_message(flow: str, told: Replayed) -> dead_letter_pb2.Replay:
    return dead_letter_pb2.Replay(
        dead_letter=letter_name(flow, told.number),
        step=told.step,
        deployment=told.deployment,
        version=told.version,
        revision=told.revision,
        same_revision=told.same_revision,
        message_id=told.message_id,
        execution_id=told.execution_id,
        edited=told.edited,
    )


def trace_id(traceparent: str) -> str:
    """Of a W3C traceparent; empty where there is none."""
    parts = traceparent.split("-")
    return parts[1] if len(parts) >= 4 else ""
