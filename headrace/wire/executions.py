"""Records of hops to the messages of `trace/v1`, and the merge of what many processes remember of an execution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.api.trace.v1 import trace_pb2
from headrace.model.hop_record import HopRecord, Record, RootRecord

# Later is worse.
OUTCOMES = ("processed", "rebound", "handed_over", "retried", "rejected", "failed", "stuck", "dead_lettered")
GATEWAY = "gateway"
ORCHESTRATOR = "orchestrator"
NS = 1_000_000_000


def execution_name(flow: str, execution: str) -> str:
    return f"flows/{flow}/executions/{execution}"


def parts_of(records: Iterable[Record]) -> list[trace_pb2.Execution]:
    """What one process remembers, an Execution for each; `merge_parts` makes whole ones of them."""
    found: dict[str, trace_pb2.Execution] = {}
    for record in records:
        part = found.get(record.execution_id)
        if part is None:
            name = execution_name(record.site.flow, record.execution_id)
            part = found[record.execution_id] = trace_pb2.Execution(name=name)
        part.trace_id, part.sampled = record.trace_id, record.sampled
        if isinstance(record, HopRecord):
            part.attempts.append(_attempt(record))
        elif not part.HasField("root") or not record.duplicate:
            part.root.CopyFrom(_root(record))
    return list(found.values())


def merge_parts(parts: Iterable[trace_pb2.Execution]) -> list[trace_pb2.Execution]:
    """One Execution for each name, newest first, attempts in order, each once."""
    by_name: dict[str, list[trace_pb2.Execution]] = {}
    for part in parts:
        by_name.setdefault(part.name, []).append(part)
    merged = [_merged(group) for group in by_name.values()]
    return sorted(merged, key=lambda execution: execution.begin_time.ToNanoseconds(), reverse=True)


def _merged(parts: Sequence[trace_pb2.Execution]) -> trace_pb2.Execution:
    whole = trace_pb2.Execution(name=parts[0].name, trace_id=parts[0].trace_id)
    whole.sampled = any(part.sampled for part in parts)
    attempts: dict[str, trace_pb2.Attempt] = {}
    for part in parts:
        if part.HasField("root") and (not whole.HasField("root") or not part.root.duplicate):
            whole.root.CopyFrom(part.root)
        for attempt in part.attempts:
            attempts.setdefault(attempt.span_id, attempt)
    whole.attempts.extend(sorted(attempts.values(), key=_order))
    whole.attempt_count = len(attempts)
    for attempt in whole.attempts:
        whole.version, whole.deployment = attempt.version, attempt.deployment
    known = {attempt.step for attempt in whole.attempts} | {GATEWAY, ORCHESTRATOR, ""}
    whole.missing_steps.extend(sorted({attempt.sender for attempt in whole.attempts} - known))
    _span_of(whole)
    _worst_of(whole)
    return whole


def _order(attempt: trace_pb2.Attempt) -> tuple[int, int]:
    return attempt.begin_time.ToNanoseconds(), attempt.attempt


def _span_of(whole: trace_pb2.Execution) -> None:
    """Begin and duration: from the earliest to the latest moment known."""
    parts: list[trace_pb2.Root | trace_pb2.Attempt | trace_pb2.Phase] = list(whole.attempts)
    for attempt in whole.attempts:
        parts += attempt.phases
    if whole.HasField("root"):
        parts.append(whole.root)
    if not parts:
        return
    begin = min(part.begin_time.ToNanoseconds() for part in parts)
    end = max(part.begin_time.ToNanoseconds() + part.duration.ToNanoseconds() for part in parts)
    whole.begin_time.FromNanoseconds(begin)
    whole.duration.FromNanoseconds(max(0, end - begin))


def _worst_of(whole: trace_pb2.Execution) -> None:
    """Of each message only its last attempt counts: an earlier one was made up for by it."""
    last: dict[str, trace_pb2.Attempt] = {}
    for attempt in whole.attempts:
        last[attempt.message_id] = attempt
    whole.outcome = "processed"
    for attempt in last.values():
        if OUTCOMES.index(attempt.outcome) > OUTCOMES.index(whole.outcome):
            whole.outcome, whole.code, whole.code_step = attempt.outcome, attempt.code, attempt.step
    if whole.root.code and OUTCOMES.index("failed") > OUTCOMES.index(whole.outcome):
        whole.outcome, whole.code, whole.code_step = "failed", whole.root.code, GATEWAY


def _root(record: RootRecord) -> trace_pb2.Root:
    phases = [_phase(name, begin, end) for name, begin, end in record.phases]
    if record.reply is not None:
        phases.append(_phase("reply", record.reply.sent_at_unix_ns, record.reply.read_at_unix_ns))
    return trace_pb2.Root(
        kind=record.kind,
        name=record.name,
        instance=record.site.instance,
        begin_time=_moment(record.started_at_unix_ns),
        duration=_took(record.duration_ns),
        phases=sorted(phases, key=lambda phase: phase.begin_time.ToNanoseconds()),
        status=record.status,
        code=record.code,
        problem=record.problem,
        duplicate=record.duplicate,
    )


def _attempt(record: HopRecord) -> trace_pb2.Attempt:
    site = record.site
    attempt = trace_pb2.Attempt(
        step=site.step,
        component=site.component,
        revision=site.revision,
        revision_number=site.revision_number,
        instance=site.instance,
        message_id=record.message_id,
        sender=_sender(record),
        attempt=record.attempt,
        delivered=record.delivered,
        outcome=record.outcome.value,
        code=record.code,
        problem=record.problem,
        begin_time=_moment(_begin_ns(record)),
        duration=_took(record.duration_ns),
        phases=_phases(record),
        outputs=record.outputs,
        replied=record.replied,
        in_doubt=record.in_doubt,
        span_id=record.span_id,
        version=site.version,
        deployment=site.deployment,
    )
    if record.retry_after_ns:
        attempt.retry_after.FromNanoseconds(record.retry_after_ns)
    if record.slot >= 0:
        attempt.slot = record.slot
    return attempt


def _begin_ns(record: HopRecord) -> int:
    return record.stored_at_unix_ns if record.opens else record.unix_of(record.began_at_mono_ns)


def _sender(record: HopRecord) -> str:
    if record.sender is None:
        return ""
    return record.sender.step or record.sender.service.removeprefix("headrace-")


def _phases(record: HopRecord) -> list[trace_pb2.Phase]:
    """In the order of the message's way; those whose moments are not known are left out."""
    at = record.unix_of
    began, entered, left = record.began_at_mono_ns, record.entered_at_mono_ns, record.left_at_mono_ns
    written, ended = record.written_at_mono_ns, record.ended_at_mono_ns
    found: list[trace_pb2.Phase] = []
    if record.opens:
        if record.sent_at_unix_ns:
            found.append(_phase("publish", record.sent_at_unix_ns, record.stored_at_unix_ns))
        found.append(_phase("queue", record.stored_at_unix_ns, record.received_at_unix_ns))
    if entered and left:
        found.append(_phase("sidecar-in", at(began), at(entered)))
        found.append(_phase("component", at(entered), at(left)))
        if written:
            found.append(_phase("sidecar-out", at(left), at(written)))
    if written and record.terminal:
        found.append(_phase("ack", at(written), at(ended)))
    return found


def _phase(name: str, begin_ns: int, end_ns: int) -> trace_pb2.Phase:
    return trace_pb2.Phase(name=name, begin_time=_moment(begin_ns), duration=_took(end_ns - begin_ns))


def _moment(unix_ns: int) -> Timestamp:
    return Timestamp(seconds=unix_ns // NS, nanos=unix_ns % NS)


def _took(ns: int) -> Duration:
    duration = Duration()
    duration.FromNanoseconds(ns)
    return duration
