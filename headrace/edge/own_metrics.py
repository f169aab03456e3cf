"""Metrics of one process alone, on a port of its own: for clusters, where somebody wants a target for each process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from headrace.api.metrics.v1.metrics_pb2 import ProcessMetrics
from headrace.edge.metrics_pages import MetricsPages
from headrace.edge.probe_server import ProbeServer
from headrace.model.metric_readings import Readings, SeriesBound
from headrace.wire.process_metrics import ProcessTotals


class OwnMetrics:
    """What `report` tells (a sidecar, a gateway), how `calls` ended (whoever serves gRPC); `ready` is for /readyz."""

    def __init__(
        self,
        ready: Callable[[], bool],
        *,
        report: Callable[[], ProcessMetrics] | None = None,
        calls: Callable[[], Mapping[tuple[str, str], int]] = dict,
    ) -> None:
        self._ready, self._report, self._calls = ready, report, calls
        self._totals, self._series = ProcessTotals(), SeriesBound()
        self._server: ProbeServer | None = None

    async def start(self, address: str) -> str:
        """Does nothing without an address. InvalidInput when it cannot be had."""
        if not address:
            return ""
        self._server = MetricsPages(self._read, self._ready).server()
        return await self._server.start(address)

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.close()

    async def _read(self) -> Readings:
        now = time.monotonic()
        self._series.next_answer(now)
        readings = Readings(self._series)
        for (method, code), count in self._calls().items():
            readings.put("api_calls_total", count, method, code)
        if self._report is not None:
            self._totals.take([self._report()], now)
            self._totals.fill(readings)
        readings.finish()
        return readings
