"""Sends component log lines as OTLP log records over gRPC, in batches, and never in the way of anybody.

What finds no room is dropped and counted; a collector that is away or silent costs what waits here and nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

from headrace.edge.otlp_target import OtlpRefused
from headrace.edge.structured_log import get_logger
from headrace.wire.otlp_fields import SCHEMA_URL

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2

log = get_logger(__name__)

LOGS = "/opentelemetry.proto.collector.logs.v1.LogsService/Export"
MAX_WAITING = 4_096
BATCH = 256
GATHER_S = 0.2
PAUSE_S = 1.0
TRIES = 3
FLUSH_LIMIT_S = 1.0
_SEVERITIES = {"debug": 5, "info": 9, "warning": 13, "error": 17}


class LogExporter:
    """`send` takes a request's bytes and answers how many records were rejected (OtlpRefused; within a limit). Give
    `run` to a task, and end it with `close`."""

    def __init__(self, send: Callable[[bytes], Awaitable[int]], workspace: str) -> None:
        self._send = send
        self._workspace = workspace
        self._takes_logs = True
        self._waiting: deque[flow_pb2.LogLine] = deque()
        self._work = asyncio.Event()
        self.exported = self.dropped = 0
        self.problem = ""

    def put(self, line: flow_pb2.LogLine) -> None:
        """The newest are dropped where there is no room."""
        if len(self._waiting) >= MAX_WAITING or not self._takes_logs:
            self.dropped += 1
            return
        self._waiting.append(line)
        self._work.set()

    async def run(self) -> None:
        """Sends for ever; only a cancellation ends it."""
        while True:
            await self._work.wait()
            await asyncio.sleep(GATHER_S)
            self._work.clear()
            while self._waiting:
                await self._send_some()

    async def close(self) -> None:
        """Sends what waits, within a second; what is left is dropped. Call it after `run` was ended."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FLUSH_LIMIT_S):
                while self._waiting and not self.problem:
                    await self._send_some()
        self.dropped += len(self._waiting)
        self._waiting.clear()
        if self.dropped and self._takes_logs:
            log.warning("log lines were not exported", dropped=self.dropped, cause=self.problem)

    async def _send_some(self) -> None:
        lines = [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]
        request = otlp_request(lines, self._workspace)
        for tries in range(1, TRIES + 1):
            try:
                rejected = await self._send(request)
            except OtlpRefused as refused:
                self.problem = str(refused)
                if self.problem.startswith("UNIMPLEMENTED"):  # Jaeger, for one, takes traces only
                    self._takes_logs = False
                    self.dropped += len(lines) + len(self._waiting)
                    self._waiting.clear()
                    log.info("the collector takes no logs: lines are not exported", cause=self.problem)
                    return
                await asyncio.sleep(PAUSE_S * tries)
                if refused.again and tries < TRIES:
                    continue
                self.dropped += len(lines)
                return
            self.exported += len(lines) - rejected
            self.dropped += rejected
            self.problem = ""
            return


def otlp_request(lines: Sequence[flow_pb2.LogLine], workspace: str) -> bytes:
    """An ExportLogsServiceRequest; one resource per component, as spans have it."""
    from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

    request = ExportLogsServiceRequest()
    scopes: dict[tuple[str, str], Any] = {}
    for line in lines:
        component = line.revision.partition("@")[0] or line.step
        key = (component, line.instance)
        if key not in scopes:
            resource = request.resource_logs.add(schema_url=SCHEMA_URL)
            _attributes(
                resource.resource.attributes,
                {"service.name": component, "service.instance.id": line.instance, "service.namespace": workspace},
            )
            scopes[key] = resource.scope_logs.add()
            scopes[key].scope.name = "headrace"
        record = scopes[key].log_records.add(
            time_unix_nano=line.time.ToNanoseconds(),
            observed_time_unix_nano=line.time.ToNanoseconds(),
            severity_number=_SEVERITIES.get(line.level, 9),
            severity_text=line.level,
            trace_id=bytes.fromhex(line.trace_id),
            span_id=bytes.fromhex(line.span_id),
        )
        record.body.string_value = line.message
        _attributes(record.attributes, _facts(line))
    return bytes(request.SerializeToString())


def _facts(line: flow_pb2.LogLine) -> dict[str, str | int]:
    known: dict[str, str | int] = {
        "headrace.flow": line.flow,
        "headrace.version": line.version,
        "headrace.deployment": line.deployment,
        "headrace.step": line.step,
        "headrace.instance": line.instance,
        "headrace.revision": line.revision,
        "headrace.execution": line.execution_id,
        "messaging.message.id": line.message_id,
        "headrace.source": line.source,
    }
    facts = {name: value for name, value in known.items() if value}
    for name, value in json.loads(line.fields_json or "{}").items():
        facts[f"log.{name}"] = value if isinstance(value, str | int) else json.dumps(value, ensure_ascii=False)
    return facts


def _attributes(target: Any, facts: dict[str, str | int]) -> None:
    for name, value in facts.items():
        attribute = target.add(key=name)
        if isinstance(value, bool):
            attribute.value.bool_value = value
        elif isinstance(value, int) and -(1 << 63) <= value < 1 << 63:
            attribute.value.int_value = value
        else:
            attribute.value.string_value = str(value)
