"""The span log of a process, with the exporter that its environment asks for: opened and closed in one place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headrace.edge.otlp_target import OtlpTarget, read_target
from headrace.edge.span_log import SpanLog
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.edge.trace_keeper import ALL_FLOWS, TraceKeeper
from headrace.model.errors import HeadraceError
from headrace.model.hop_record import SpanCounts

if TYPE_CHECKING:
    from nats.aio.client import Client

    from headrace.edge.kv_bucket import KvBucket
    from headrace.edge.otlp_channel import OtlpChannel
    from headrace.edge.span_export import SpanExporter

log = get_logger(__name__)

READ_LIMIT_S = 2.0


class Tracing:
    """Create inside the running loop; `tasks` owns the exporter's task. What is wrong with the environment is told in
    the log and turns exporting off: it is no reason for a service not to run."""

    def __init__(self, tasks: asyncio.TaskGroup, environ: Mapping[str, str] = os.environ) -> None:
        self.counts = SpanCounts()
        self._channel: OtlpChannel | None = None
        self._exporter: SpanExporter | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks, self._following = tasks, list[asyncio.Task[None]]()
        self.target = _target(environ)
        if self.target is not None:
            # gRPC is loaded only where it is needed.
            from headrace.edge.otlp_channel import OtlpChannel
            from headrace.edge.span_export import SpanExporter

            try:
                self._channel = OtlpChannel(self.target)
            except OSError as error:
                log.error("spans are not exported: the certificate cannot be read", error=str(error))
            else:
                self._exporter = SpanExporter(self._channel.send, self.counts)
                self._task = tasks.create_task(self._exporter.run(), name="span export")
                log.info("spans are exported", collector=self.target.url)
        self._keeper: TraceKeeper | None = None
        self.log = SpanLog(exporter=self._exporter, counts=self.counts)

    async def remember(self, connection: Client, bucket: KvBucket, workspace: str, flow: str, instance: str) -> None:
        """Executions are remembered for some minutes from now on, and sampled as the flow's document says. `bucket` is
        that of deployments; `flow` `*`: every flow. To be called before anybody is given the log."""
        keeper = self._keeper = TraceKeeper(self.log, workspace, flow, instance)
        await keeper.start(connection, bucket)
        self._following.append(self._tasks.create_task(keeper.follow(), name="sampling"))
        if flow == ALL_FLOWS:
            await keeper.until_read(READ_LIMIT_S)  # an instance's start is not held up: only listeners begin traces

    async def close(self) -> None:
        """Sends what is there, within half a second, and ends."""
        self.log.hand_over()
        if self._keeper is not None:
            self._keeper.close()
        await end_tasks(self._following)
        if self._task is not None and self._exporter is not None and self._channel is not None:
            await self._exporter.close(self._task)
            await self._channel.close()


def _target(environ: Mapping[str, str]) -> OtlpTarget | None:
    try:
        return read_target(environ)
    except HeadraceError as error:
        log.error("spans are not exported", error=error.message)
        return None
