"""The whole mesh in one answer: the readings of the metrics, the board of flows, and what is wrong."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.api.flow.v1 import flow_pb2
from headrace.model.metric_readings import Readings
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.flow_health import Health
from services.orchestrator.domain.flow_states import RUNS
from services.orchestrator.flow_board import FlowBoard
from services.orchestrator.mesh_metrics import MeshMetrics
from services.orchestrator.mesh_view import MeshView
from services.orchestrator.status_view import problems_of
from services.orchestrator.stores import Stores

MOST_FLOWS = 1000
DISK_LOW = 0.1
STATUS = "headrace status"


@dataclass
class MeshStatusReader:
    """Of the leader."""

    stores: Stores
    view: MeshView
    figures: MeshMetrics
    board: FlowBoard

    async def read(self) -> flow_pb2.MeshStatus:
        """Never waits for longer than the metrics do: what does not answer is left out, and is an alarm."""
        server, readings = await self.view.server_info(), await self.figures.read()
        flows = sorted(await self.stores.all_flows(), key=lambda flow: flow.flow)[:MOST_FLOWS]
        status = flow_pb2.MeshStatus(
            server=server, broker=broker_status(readings), flows=[self._summary(flow, readings) for flow in flows]
        )
        status.alarms.extend(mesh_alarms(status, readings))
        for flow in flows:
            status.alarms.extend(self._flow_alarms(flow))
        return status

    def _summary(self, flow: FlowDocument, readings: Readings) -> flow_pb2.FlowSummary:
        name = flow.flow

        def total(metric: str, *further: str) -> int:
            values = readings.values(metric)
            return int(sum(n for labels, n in values.items() if labels[0] == name and labels[2:] == further))

        summary = flow_pb2.FlowSummary(
            flow=f"flows/{name}",
            state=flow_pb2.FlowState.Value(f"FLOW_STATE_{flow.state}"),
            health=(self.board.health(name) or Health.UNKNOWN).value,
            version=flow.active_version or flow.latest_version,
            deployment=flow.active,
            draft=flow.draft is not None,
            waiting=total("step_waiting_messages"),
            in_flight=total("step_in_flight_messages"),
            failed_attempts=total("step_failed_attempts_total"),
            dead_letters=int(readings.values("flow_dead_letters_kept").get((name,), 0)),
            processed=total("step_messages_total", "processed"),
        )
        ages = readings.values("step_oldest_message_age_seconds")
        oldest = max((age for labels, age in ages.items() if labels[0] == name), default=0.0)
        if oldest:
            summary.oldest_age.FromMilliseconds(int(oldest * 1000))
        return summary

    def _flow_alarms(self, flow: FlowDocument) -> list[flow_pb2.Alarm]:
        snapshot = self.board.flows().get(flow.flow)
        name, why = f"flows/{flow.flow}", f"headrace why {flow.flow}"
        found = [
            flow_pb2.Alarm(flow=name, message=problem, next_step=why)
            for problem in (problems_of(snapshot) if snapshot is not None else [])
        ]
        if not found and flow.state in RUNS and self.board.health(flow.flow) == Health.NOT_SERVING:
            found.append(flow_pb2.Alarm(flow=name, message="a step has nobody who works", next_step=why))
        return found


def broker_status(readings: Readings) -> flow_pb2.BrokerStatus:
    """From its metrics."""

    def one(metric: str, *labels: str) -> float:
        return readings.values(metric).get(labels, 0.0)

    return flow_pb2.BrokerStatus(
        up=bool(one("broker_up")),
        answer_ms=one("broker_answer_seconds") * 1000,
        stored_bytes=int(one("broker_stored_bytes")),
        streams=int(one("broker_streams")),
        consumers=int(one("broker_consumers")),
        servers=[
            flow_pb2.BrokerServer(
                name=name,
                up=bool(up),
                memory_bytes=int(one("broker_server_memory_bytes", name)),
                connections=int(one("broker_server_connections", name)),
                disk_free_bytes=int(one("broker_server_disk_free_bytes", name)),
                disk_size_bytes=int(one("broker_server_disk_size_bytes", name)),
            )
            for (name,), up in sorted(readings.values("broker_server_up").items())
        ],
    )


def mesh_alarms(status: flow_pb2.MeshStatus, readings: Readings) -> list[flow_pb2.Alarm]:
    """What is wrong with the mesh itself, the worst first."""
    found: list[tuple[str, str]] = []
    if not status.broker.up:
        found.append(("the broker does not answer: messages wait where they are", STATUS))
    for server in status.broker.servers:
        if not server.up:
            found.append((f"the broker's server {server.name} does not answer at its monitoring port", STATUS))
        elif server.disk_size_bytes and server.disk_free_bytes < DISK_LOW * server.disk_size_bytes:
            free = 100 * server.disk_free_bytes / server.disk_size_bytes
            found.append(
                (f"only {free:.0f} % of the disk of {server.name} is free; full, it takes no messages", "df -h")
            )
    if not readings.values("agent_up").get((), 0.0):
        found.append(("the agent does not answer: instances are neither started nor stopped", STATUS))
    if not status.server.gateways:
        found.append(("no gateway answers: there are no webhooks", STATUS))
    if lost := readings.values("spans_dropped_total").get((), 0.0):
        found.append((f"{lost:.0f} spans were lost: traces have holes. Is the collector away?", STATUS))
    return [flow_pb2.Alarm(message=message, next_step=next_step) for message, next_step in found]
