"""Answers on NATS what this process remembers of executions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.api.trace.v1 import trace_pb2
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import HeadraceError
from headrace.model.hop_record import HopRecord
from headrace.model.recent_executions import RecentExecutions
from headrace.model.record_filter import parse_filter
from headrace.wire.executions import execution_name, parts_of

if TYPE_CHECKING:
    from headrace.edge.span_log import SpanLog

log = get_logger(__name__)

ALL = "_all"
MAX_ANSWER_BYTES = 512 * 1024
MAX_EXECUTIONS = 100


class TraceResponder:
    """`hr.<workspace>._traces.<flow>`, and `._all`."""

    def __init__(self, span_log: SpanLog, recent: RecentExecutions, instance: str) -> None:
        self._log = span_log
        self._recent = recent
        self._instance = instance
        self._connection: Client | None = None

    async def start(self, connection: Client, workspace: str, flow: str) -> None:
        """`flow` may be `*`."""
        self._connection = connection
        for name in {flow, ALL} if flow != "*" else {flow}:
            await connection.subscribe(subjects.trace_question_subject(workspace, name), cb=self._answer)

    async def _answer(self, message: Msg) -> None:
        if not message.reply or self._connection is None:
            return
        try:
            question = trace_pb2.TraceQuestion.FromString(message.data)
            flow = message.subject.rpartition(".")[2]
            self._log.hand_over()
            answer = self._told(question, "" if flow == ALL else flow)
        except (DecodeError, HeadraceError) as error:
            log.debug("a question that is none", error=str(error)[:200])
            return
        await self._connection.publish(message.reply, answer.SerializeToString())

    def _told(self, question: trace_pb2.TraceQuestion, flow: str) -> trace_pb2.TraceAnswer:
        answer = trace_pb2.TraceAnswer(instance=self._instance, one_in=2**self._recent.level)
        if not question.executions:
            answer.executions.extend(self._newest(question, flow))
            return answer
        wanted = list(question.executions)[:MAX_EXECUTIONS]
        self._recent.mark(wanted)
        size = 0
        for part in parts_of(record for record in self._recent.of(wanted) if flow in ("", record.site.flow)):
            size += part.ByteSize()
            if size > MAX_ANSWER_BYTES and answer.executions:
                break
            answer.executions.append(part)
        return answer

    def _newest(self, question: trace_pb2.TraceQuestion, flow: str) -> list[trace_pb2.Execution]:
        """Names and moments of the newest executions of which a record fits."""
        wanted = parse_filter(question.filter)
        limit = min(question.limit or MAX_EXECUTIONS, MAX_EXECUTIONS)
        found: dict[str, trace_pb2.Execution] = {}
        for record in self._recent.all():
            if len(found) >= limit:
                break
            if flow in ("", record.site.flow) and record.execution_id not in found and wanted.fits(record):
                part = trace_pb2.Execution(name=execution_name(record.site.flow, record.execution_id))
                at_ns = record.stored_at_unix_ns if isinstance(record, HopRecord) else record.started_at_unix_ns
                part.begin_time.FromNanoseconds(at_ns)
                found[record.execution_id] = part
        return list(found.values())
