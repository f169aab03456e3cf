"""All metrics of the mesh, put together by the leader when somebody asks; a standby tells of itself alone.

Sidecars and gateways are asked on NATS, flows are on the board, streams and broker are asked by a few requests. While
nobody asks, none of it costs anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import nats.errors
from google.protobuf.message import DecodeError
from nats.aio.client import Client

from headrace.api.metrics.v1.metrics_pb2 import ProcessMetrics
from headrace.edge.broker_figures import put_broker, put_reach, read_broker
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import HeadraceError
from headrace.model.hop_record import SpanCounts
from headrace.model.metric_readings import Readings, SeriesBound
from headrace.model.metric_totals import Totals
from headrace.wire.process_metrics import ProcessTotals
from services.orchestrator.backlog import Backlogs
from services.orchestrator.domain.flow_metrics import FlowBacklog, put_backlog, put_flow
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.flow_board import FlowBoard
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.instance_views import instance_figures
from services.orchestrator.lease import Lease
from services.orchestrator.mesh_queries import gather_answers

log = get_logger(__name__)

# Who asks within this time of another gets the same answer.
FRESH_S = 0.5
QUIET_S = 0.1
ANSWER_LIMIT_S = 2.0


@dataclass
class MeshMetrics:
    """`read` answers what the metrics are now. Totals are kept while this process lives, also over terms."""

    connection: Client
    assets: JetStreamAssets
    workspace: str
    lease: Lease
    observer: InstanceObserver
    board: FlowBoard
    server: GrpcServer
    # Of this process: ticks and injected messages.
    spans: SpanCounts
    # Monitoring addresses of the broker's servers.
    monitors: Sequence[str] = ()
    series: SeriesBound = field(default_factory=SeriesBound)
    _processes: ProcessTotals = field(default_factory=ProcessTotals)
    _restarts: Totals[tuple[str, str, str]] = field(default_factory=Totals)
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _newest: tuple[float, Readings] | None = None

    def __post_init__(self) -> None:
        self._backlogs = Backlogs(self.assets, self.workspace)

    async def read(self) -> Readings:
        """Never fails: what does not answer in time is left out, and the metrics say so."""
        async with self._lock:
            if self._newest is not None and time.monotonic() - self._newest[0] < FRESH_S:
                return self._newest[1]
            began = time.monotonic()
            self.series.next_answer(began)
            readings = Readings(self.series)
            self._put_own(readings)
            if self.lease.leading:
                await self._put_mesh(readings)
            else:
                put_reach(await read_broker(self.assets, ()), readings)
            readings.put("metrics_collect_seconds", time.monotonic() - began)
            readings.finish()
            self._newest = (time.monotonic(), readings)
            return readings

    def _put_own(self, readings: Readings) -> None:
        readings.put("leader", self.lease.leading)
        readings.put("leader_epoch", self.lease.epoch)
        readings.add("spans_sent_total", self.spans.exported)
        readings.add("spans_dropped_total", self.spans.dropped + self.spans.rejected)
        readings.put("api_open_streams", self.server.bounds.open_streams)
        for (method, code), count in self.server.calls.counts.items():
            readings.put("api_calls_total", count, method, code)

    async def _put_mesh(self, readings: Readings) -> None:
        flows = dict(self.board.flows())
        broker, backlogs, reports = await asyncio.gather(
            read_broker(self.assets, self.monitors), self._read_backlogs(flows), self._ask_processes()
        )
        now = time.monotonic()
        self._processes.take(reports, now)
        readings.put("agent_up", self.observer.agent_known)
        put_broker(broker, readings)
        self._put_restarts(readings, now)
        unread = 0
        for flow, snapshot in sorted(flows.items()):
            backlog = backlogs.get(flow)
            unread += backlog is None or backlog.steps is None
            self._put_flow(snapshot, backlog, readings)
        readings.put("metrics_unread_flows", unread)
        self._processes.fill(readings)  # last: histograms are most of the series, and those that may be over the bound

    async def _read_backlogs(self, flows: Mapping[str, Snapshot]) -> Mapping[str, FlowBacklog]:
        try:
            return await self._backlogs.read(flows)
        except (HeadraceError, JetStreamApiError) as error:
            log.warning("what waits in the flows could not be read", error=str(error)[:300])
            return {}

    async def _ask_processes(self) -> list[ProcessMetrics]:
        subject = subjects.metrics_request_subject(self.workspace)
        try:
            answers = await gather_answers(self.connection, subject, b"", quiet_s=QUIET_S, limit_s=ANSWER_LIMIT_S)
        except (nats.errors.Error, OSError) as error:
            log.warning("sidecars and gateways cannot be asked", error=repr(error)[:300])
            return []
        found: list[ProcessMetrics] = []
        for answer in answers:
            try:
                found.append(ProcessMetrics.FromString(answer))
            except DecodeError as error:
                log.warning("a process told metrics that cannot be read", error=str(error))
        return found

    def _put_restarts(self, readings: Readings, now: float) -> None:
        self._restarts.next_look(now)
        for name, instance in self.observer.instances.items():
            flow, step = instance.spec.flow, instance.spec.step
            starts = max(0, instance.starts - 1)
            self._restarts.take(f"sidecar {name}", "", {(flow, step, "sidecar"): starts})
            status = self.observer.statuses.get(name)
            if status is not None:
                again = max(0, status.component_starts - 1)
                pid = str(status.sidecar_pid)
                self._restarts.take(f"component {name}", pid, {(flow, step, "component"): again})
        for labels, count in self._restarts.items().items():
            readings.put("step_restarts_total", count, *labels)

    def _put_flow(self, snapshot: Snapshot, backlog: FlowBacklog | None, readings: Readings) -> None:
        flow = snapshot.flow.flow
        figures = instance_figures(self.observer.instances_of(flow), self.observer.statuses)
        put_flow(readings, snapshot, self.board.health(flow), figures)
        if backlog is not None:
            put_backlog(readings, snapshot, backlog, figures.in_flight, time.time())
