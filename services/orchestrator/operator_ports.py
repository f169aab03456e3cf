"""What this orchestrator offers to its operators beside the API: metrics, probes, health of flows, channelz, OTLP."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Protocol

from headrace.edge.metrics_pages import MetricsPages
from headrace.edge.otlp_metrics import MetricsExport
from headrace.edge.probe_server import ProbeServer
from services.orchestrator.health_of_flows import HealthOfFlows
from services.orchestrator.mesh_metrics import MeshMetrics


class Places(Protocol):
    """Addresses are `host:port`; empty: that port is not served."""

    @property
    def metrics(self) -> str: ...

    @property
    def admin(self) -> str: ...

    @property
    def broker_monitors(self) -> Sequence[str]: ...

    @property
    def workspace(self) -> str: ...


class OperatorPorts:
    """`start` serves them, `stop` ends them."""

    def __init__(self, figures: MeshMetrics, health: HealthOfFlows, places: Places) -> None:
        self._server, self._figures, self._health, self._places = figures.server, figures, health, places
        self._probes: ProbeServer | None = None
        self._export: MetricsExport | None = None
        self._stops = False
        figures.monitors = places.broker_monitors
        self._server.tell_health_of(health)

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """InvalidInput when an address cannot be had. The exporter's task belongs to `tasks`."""
        if self._places.admin:
            await self._server.serve_admin(self._places.admin)
        if self._places.metrics:
            self._probes = MetricsPages(self._figures.read, lambda: not self._stops).server()
            await self._probes.start(self._places.metrics)
        self._export = MetricsExport.begin(os.environ, self._figures.read, f"headrace-{self._places.workspace}", tasks)

    async def stop(self) -> None:
        """The server is to be stopped before, so that nothing new comes."""
        self._stops = True
        if self._probes is not None:
            await self._probes.close()
        if self._export is not None:
            await self._export.close()
        await self._health.close()
