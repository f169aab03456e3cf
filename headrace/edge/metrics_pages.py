"""The pages of a process' metrics port."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from headrace.edge.probe_server import Page, ProbeServer
from headrace.model.metric_readings import Readings


class MetricsPages:
    """/metrics, /healthz (the process answers) and /readyz (it serves, and is not about to stop)."""

    def __init__(self, read: Callable[[], Awaitable[Readings]], ready: Callable[[], bool]) -> None:
        self._read, self._ready = read, ready

    def server(self) -> ProbeServer:
        """Not started yet."""
        return ProbeServer({"/metrics": self._metrics, "/healthz": self._healthz, "/readyz": self._readyz})

    async def _metrics(self, accept: str) -> Page:
        from headrace.edge.open_metrics import render  # nobody may ever ask

        readings = await self._read()
        # Thousands of series take a tenth of a second, in which a leader has other things to do.
        return Page(*await asyncio.to_thread(render, readings, accept))

    async def _healthz(self, accept: str) -> Page:
        return Page(b"alive\n")

    async def _readyz(self, accept: str) -> Page:
        return Page(b"ready\n") if self._ready() else Page(b"not ready: it stops\n", status=503)
