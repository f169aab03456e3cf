"""The log exporter of a process, where its environment asks for one: opened and closed in one place."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from headrace.edge.otlp_target import read_target
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from headrace.edge.log_export import LogExporter

log = get_logger(__name__)


class LogExporting:
    """Create inside the running loop; `tasks` owns the exporter's task. `exporter` is None where there is no endpoint
    or what is said of it is wrong: that is told in the log, and no reason for a service not to run."""

    def __init__(self, tasks: asyncio.TaskGroup, workspace: str, environ: Mapping[str, str] = os.environ) -> None:
        self.exporter: LogExporter | None = None
        try:
            target = read_target(environ, "LOGS")
        except HeadraceError as error:
            log.error("log lines are not exported", error=error.message)
            return
        if target is None:
            return
        from headrace.edge.log_export import LOGS, LogExporter
        from headrace.edge.otlp_channel import OtlpChannel

        try:
            self._channel = OtlpChannel(target, LOGS)
        except OSError as error:
            log.error("log lines are not exported: the certificate cannot be read", error=str(error))
            return
        self.exporter = LogExporter(self._channel.send, workspace)
        self._task = tasks.create_task(self.exporter.run(), name="log export")

    async def close(self) -> None:
        """Sends what is there, within a second, and ends."""
        if self.exporter is not None:
            await end_tasks([self._task])
            await self.exporter.close()
            await self._channel.close()
