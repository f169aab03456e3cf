"""TraceService: executions as sidecars, gateways and orchestrators remember them, and the sampling of flows."""

from __future__ import annotations

import os
import time
from typing import Any

from nats.aio.client import Client

from headrace.api.trace.v1 import trace_pb2, trace_pb2_grpc
from headrace.edge.otlp_target import jaeger_pages
from headrace.edge.structured_log import get_logger
from headrace.edge.trace_responder import ALL
from headrace.model import subjects
from headrace.model.errors import InvalidInput, NotFound
from headrace.model.names import check_name, parse_resource
from headrace.model.record_filter import parse_filter
from headrace.model.sampling import Sampling, check_ratio, new_capture, with_capture, with_ratio
from headrace.wire.executions import execution_name, merge_parts
from headrace.wire.flow import seconds_from_duration
from services.orchestrator.caller import caller_of
from services.orchestrator.flow_service import FlowService
from services.orchestrator.mesh_queries import gather_answers
from services.orchestrator.sampling_changes import SamplingChanges

log = get_logger(__name__)

SERVICE_NAME = "headrace.api.trace.v1.TraceService"
ANY_FLOW = "-"
QUIET_S = 0.1
WAIT_S = 0.5
DEFAULT_LISTED = 20
MAX_LISTED = 100
_HEXADECIMAL = frozenset("0123456789abcdef")


class TraceRpc(trace_pb2_grpc.TraceServiceServicer):
    """Every orchestrator answers: what is asked for is in the processes of the mesh, or in a document that whoever may
    writes by compare-and-set. `pages` is where a person finds Jaeger, empty where that is not known."""

    def __init__(self, service: FlowService, connection: Client, sampling: SamplingChanges) -> None:
        self._service = service
        self._connection = connection
        self._sampling = sampling
        self._pages = jaeger_pages(os.environ).rstrip("/")

    async def GetTrace(self, request: trace_pb2.GetTraceRequest, context: Any) -> Any:
        flow, execution = parse_execution(request.name)
        answers = await self._ask(flow, trace_pb2.TraceQuestion(executions=[execution]))
        found = merge_parts(part for answer in answers for part in answer.executions)
        if not found:
            raise NotFound(
                f"nothing is remembered of execution {execution}",
                reason="EXECUTION_NOT_FOUND",
                next_step=_where_else(_memory(answers), self._link(execution)),
            )
        return self._linked(found[0])

    async def ListExecutions(self, request: trace_pb2.ListExecutionsRequest, context: Any) -> Any:
        flow = _flow_of("parent", request.parent)
        parse_filter(request.filter)
        if request.limit < 0:
            raise InvalidInput.at("limit", request.limit, "is negative", next_step=f"Use 0 to {MAX_LISTED}")
        limit = min(request.limit or DEFAULT_LISTED, MAX_LISTED)
        sightings = await self._ask(flow, trace_pb2.TraceQuestion(filter=request.filter, limit=limit))
        newest: dict[str, int] = {}
        for sighting in (part for answer in sightings for part in answer.executions):
            at_ns = sighting.begin_time.ToNanoseconds()
            newest[sighting.name] = max(at_ns, newest.get(sighting.name, 0))
        chosen = sorted(newest, key=lambda name: newest[name], reverse=True)[:limit]
        answer = trace_pb2.ListExecutionsResponse(memory=_memory(sightings))
        if chosen:
            question = trace_pb2.TraceQuestion(executions=[name.rpartition("/")[2] for name in chosen])
            answers = await self._ask(flow, question)
            for execution in merge_parts(part for each in answers for part in each.executions):
                execution.ClearField("attempts")
                answer.executions.append(self._linked(execution))
        return answer

    async def GetSampling(self, request: trace_pb2.GetSamplingRequest, context: Any) -> Any:
        flow = await self._existing(request.flow)
        return sampling_message(flow, await self._sampling.read(flow))

    async def UpdateSampling(self, request: trace_pb2.UpdateSamplingRequest, context: Any) -> Any:
        ratio = check_ratio(request.ratio)
        flow = await self._existing(request.flow)
        who, now = caller_of(context), time.time()
        sampling = await self._sampling.change(flow, lambda present: with_ratio(present, ratio, who, now))
        log.info("sampling changed", flow=flow, ratio=ratio)
        return sampling_message(flow, sampling)

    async def CaptureExecutions(self, request: trace_pb2.CaptureExecutionsRequest, context: Any) -> Any:
        now = time.time()
        capture = new_capture(request.count, request.where, now, seconds_from_duration(request.within))
        flow, who = await self._existing(request.flow), caller_of(context)
        sampling = await self._sampling.change(flow, lambda present: with_capture(present, capture, who, now))
        return sampling_message(flow, sampling)

    async def _existing(self, name: str) -> str:
        (flow,) = parse_resource("flow", name, "flows")
        await self._service.stores.existing_flow(flow)
        return flow

    async def _ask(self, flow: str, question: trace_pb2.TraceQuestion) -> list[trace_pb2.TraceAnswer]:
        if flow != ANY_FLOW:
            await self._service.stores.existing_flow(flow)
        subject = subjects.trace_question_subject(self._service.stores.workspace, ALL if flow == ANY_FLOW else flow)
        raw = await gather_answers(
            self._connection, subject, question.SerializeToString(), quiet_s=QUIET_S, limit_s=WAIT_S
        )
        return [trace_pb2.TraceAnswer.FromString(answer) for answer in raw]

    def _linked(self, execution: trace_pb2.Execution) -> trace_pb2.Execution:
        execution.link = self._link(execution.trace_id)
        return execution

    def _link(self, trace_id: str) -> str:
        return f"{self._pages}/trace/{trace_id}" if self._pages else ""


def parse_execution(name: str) -> tuple[str, str]:
    """Flow (`-` for any) and id of an execution; InvalidInput for what names none."""
    parts = name.split("/")
    if len(parts) != 4 or parts[::2] != ["flows", "executions"]:
        pattern = "flows/{flow}/executions/{execution}; flow may be -"
        raise InvalidInput.at("name", name, "is not an execution's name", next_step=f"Use {pattern}", reason="BAD_NAME")
    flow, execution = parts[1], parts[3]
    if flow != ANY_FLOW:
        check_name("name", flow)
    if len(execution) != 32 or not _HEXADECIMAL.issuperset(execution):
        raise InvalidInput.at(
            "name",
            name,
            "does not end in an execution's id (32 hexadecimal digits)",
            next_step="It is in headrace-execution of a webhook's answer, in logs, dead letters and ListExecutions",
            reason="BAD_NAME",
        )
    return flow, execution


def _flow_of(field: str, name: str) -> str:
    return ANY_FLOW if name == f"flows/{ANY_FLOW}" else parse_resource(field, name, "flows")[0]


def _memory(answers: list[trace_pb2.TraceAnswer]) -> trace_pb2.Memory:
    return trace_pb2.Memory(instances=len(answers), one_in=max((answer.one_in for answer in answers), default=1))


def _where_else(memory: trace_pb2.Memory, link: str) -> str:
    parts = [f"The mesh remembers the last minutes ({memory.instances} processes answered)"]
    if memory.one_in > 1:
        parts.append(f"under this load one execution in {memory.one_in} stays that long, and what failed")
    parts.append(f"if it was sampled it is in {link}" if link else "list what is there: headrace trace")
    return "; ".join(parts)


def sampling_message(flow: str, sampling: Sampling) -> trace_pb2.Sampling:
    message = trace_pb2.Sampling(flow=f"flows/{flow}", ratio=sampling.ratio)
    if sampling.changed_at:
        message.change_time.FromNanoseconds(int(sampling.changed_at * 1e9))
    capture = sampling.capture
    if capture is not None:
        names = [execution_name(flow, execution) for execution in capture.caught]
        message.capture.count, message.capture.where = capture.wanted, capture.where
        message.capture.executions.extend(names)
        message.capture.begin_time.FromNanoseconds(int(capture.since * 1e9))
        message.capture.expire_time.FromNanoseconds(int(capture.until * 1e9))
    return message
