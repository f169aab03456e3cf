"""Wires the orchestrator: connections, stores, loops, services; starts and stops them in order."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.longrunning import operations_pb2_grpc
from google.rpc import error_details_pb2  # noqa: F401  (so that reflection can describe error details)
from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.api.deadletter.v1 import dead_letter_pb2_grpc
from headrace.api.diagnosis.v1 import diagnosis_pb2_grpc
from headrace.api.flow.v1 import flow_pb2_grpc
from headrace.api.hop.v1 import hop_pb2_grpc
from headrace.api.trace.v1 import trace_pb2_grpc
from headrace.edge.attachment_store import AttachmentAccess
from headrace.edge.call_bounds import CallBounds
from headrace.edge.grpc_channel import open_channel
from headrace.edge.grpc_server import GrpcServer
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.key_ring import KeyRing
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.readiness import report_ready
from headrace.edge.request_book import RequestBook
from headrace.edge.stimulus_traces import StimulusTraces
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.edge.trace_keeper import ALL_FLOWS
from headrace.edge.tracing import Tracing
from headrace.model import bucket_names, subjects
from headrace.model.attachments import LIMIT_VARIABLE, limit_of
from headrace.model.hop_record import Site
from headrace.model.ingress_owner import is_fenced
from headrace.model.names import DEFAULT_WORKSPACE
from services.orchestrator.applier import Applier
from services.orchestrator.attachment_sweeper import keep_swept
from services.orchestrator.credential_store import CredentialStore
from services.orchestrator.domain.dead_letters import DEFAULT_LIMITS, LetterLimits
from services.orchestrator.doubt_records import DoubtRecords
from services.orchestrator.fact_finder import FactFinder
from services.orchestrator.fact_reader import FlowFactReader
from services.orchestrator.flow_board import FlowBoard
from services.orchestrator.flow_service import FlowService
from services.orchestrator.health_of_flows import HealthOfFlows
from services.orchestrator.history_log import HistoryReader
from services.orchestrator.hop_feed import HopFeed
from services.orchestrator.ingress_lane import IngressLane
from services.orchestrator.injection import Injector
from services.orchestrator.instance_observer import InstanceObserver
from services.orchestrator.leader_gate import LeaderGate
from services.orchestrator.lease import Lease
from services.orchestrator.letter_edits import LetterEdits
from services.orchestrator.letter_sender import LetterSender
from services.orchestrator.letter_store import LetterStore
from services.orchestrator.letter_work import LetterWorker
from services.orchestrator.log_tail import ensure_shared_streams
from services.orchestrator.mesh_metrics import MeshMetrics
from services.orchestrator.mesh_status import MeshStatusReader
from services.orchestrator.mesh_view import MeshView
from services.orchestrator.nudges import Nudges
from services.orchestrator.operation_view import OperationView
from services.orchestrator.operator_ports import OperatorPorts
from services.orchestrator.reconcile_loop import FlowLoops
from services.orchestrator.registry_passage import REGISTRY_SERVICE, RegistryPassage
from services.orchestrator.resolution import ACK_WAIT_S, Resolver
from services.orchestrator.rollouts import Rollouts
from services.orchestrator.rpc_attachment import add_attachments
from services.orchestrator.rpc_dead_letter import DeadLetterRpc
from services.orchestrator.rpc_diagnosis import SERVICE_NAME as DIAGNOSIS_SERVICE
from services.orchestrator.rpc_diagnosis import DiagnosisRpc
from services.orchestrator.rpc_flow import FlowRpc
from services.orchestrator.rpc_hop import HopRpc
from services.orchestrator.rpc_operations import OperationsRpc
from services.orchestrator.rpc_snapshot import add_snapshots
from services.orchestrator.rpc_trace import TraceRpc
from services.orchestrator.sampling_changes import SamplingChanges
from services.orchestrator.scheduler import Scheduler
from services.orchestrator.shared_feed import SharedFeeds
from services.orchestrator.side_deployments import SideDeployments
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.status_feed import StatusFeed
from services.orchestrator.stimulus_replay import StimulusReplay
from services.orchestrator.stimulus_store import StimulusStore
from services.orchestrator.stores import Stores
from services.orchestrator.term import Term
from services.orchestrator.trial_services import add_trial_services
from services.orchestrator.trials import Trials
from services.orchestrator.upkeep import Upkeep
from services.orchestrator.wall_clock import WallClock

log = get_logger(__name__)

SYNCED_PROFILE = "durable"


@dataclass(frozen=True)
class Settings:
    """Addresses are `host:port`; `profile` says how the broker keeps data: shown, and `durable` groups commits."""

    nats: str
    listen: str
    registry: str
    agent: str
    profile: str
    workspace: str = DEFAULT_WORKSPACE
    # How long a message that a killed sidecar held waits until it is delivered again.
    ack_wait_s: float = ACK_WAIT_S
    # Unique among the orchestrators of a workspace, and kept by whatever replaces this process once it is dead.
    name: str = ""
    # Address under which other orchestrators reach this one; empty: where it listens.
    advertise: str = ""
    # How many dead letters of a flow are kept.
    letter_limits: LetterLimits = DEFAULT_LIMITS
    # Where metrics and probes are served, `host:port`; empty: nowhere.
    metrics: str = ""
    # Monitoring addresses of the broker's servers, as http://127.0.0.1:8222.
    broker_monitors: tuple[str, ...] = ()
    # Loopback address of channelz; empty: none.
    admin: str = ""


def add_services(
    server: GrpcServer,
    flows: FlowRpc,
    letters: DeadLetterRpc,
    hops: HopRpc,
    traces: TraceRpc,
    operations: OperationsRpc,
    diagnosis: DiagnosisRpc,
) -> None:
    """What this orchestrator serves itself."""
    server.add(flow_pb2_grpc.add_FlowServiceServicer_to_server, flows, "headrace.api.flow.v1.FlowService")
    add_letters = dead_letter_pb2_grpc.add_DeadLetterServiceServicer_to_server
    server.add(add_letters, letters, "headrace.api.deadletter.v1.DeadLetterService")
    server.add(hop_pb2_grpc.add_HopServiceServicer_to_server, hops, "headrace.api.hop.v1.HopService")
    server.add(trace_pb2_grpc.add_TraceServiceServicer_to_server, traces, "headrace.api.trace.v1.TraceService")
    server.add(operations_pb2_grpc.add_OperationsServicer_to_server, operations, "google.longrunning.Operations")
    server.add(diagnosis_pb2_grpc.add_DiagnosisServiceServicer_to_server, diagnosis, DIAGNOSIS_SERVICE)


def add_stored(server: GrpcServer, stores: Stores, assets: JetStreamAssets, attachments: AttachmentAccess) -> None:
    """What steps and messages keep outside of messages."""
    add_snapshots(server, stores, assets)
    add_attachments(server, stores, attachments)


async def _opened(connection: Client, workspace: str, lease: Lease) -> tuple[Stores, RequestBook]:
    stores = Stores.open(connection, workspace, lease.check)
    return await asyncio.gather(stores, RequestBook.open(connection, workspace, lease.check))


class OrchestratorApp:
    """A service of `headrace.edge.service_runner`."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._ring = KeyRing(os.environ)
        self._stopping = asyncio.Event()
        self._loops: FlowLoops | None = None
        self._observer: InstanceObserver | None = None
        self._scheduler: Scheduler | None = None
        self._connection: Client | None = None
        self._server: GrpcServer | None = None
        self._lease: Lease | None = None
        self._gate: LeaderGate | None = None
        self._term: Term | None = None
        self._feeds: tuple[SharedFeeds[Any], ...] = ()
        self._operators: OperatorPorts | None = None
        self._nudges: Nudges | None = None
        self._registry: grpc.aio.Channel | None = None
        self._ingress: IngressLane | None = None
        self._tracing: Tracing | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.address = ""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        settings, workspace = self._settings, self._settings.workspace
        self._connection = connection = await connect_nats(settings.nats, "orchestrator", on_reconnect=self._wake_all)
        epochs, _ = await asyncio.gather(
            KvBucket.open(connection, bucket_names.flow_bucket(workspace)),
            ensure_shared_streams(JetStreamAssets(connection), workspace),
        )
        self._lease = lease = Lease(connection, workspace, epochs, name=settings.name)
        assets = JetStreamAssets(connection, guard=lease.check)
        stores, requests = await _opened(connection, workspace, lease)
        clock = WallClock()
        self._registry = registry = open_channel(settings.registry)
        group_commits = partial(self._commits_in_groups, assets)
        resolver = await self._resolver(connection, registry, stores, clock, group_commits)
        self._observer = observer = self._observe(lease)
        self._nudges = nudges = Nudges(connection, assets, workspace, self._wake)
        reader = SnapshotReader(stores, assets, observer, clock, lambda: lease.epoch, settings.letter_limits)
        reader.group_commits, reader.nudged = group_commits, nudges.fresh
        letters = LetterStore(connection, assets, workspace)
        doubts = DoubtRecords(connection, assets, workspace)
        history = HistoryReader(connection, assets, workspace)
        attachments = AttachmentAccess(connection, workspace, limit_of(os.environ.get(LIMIT_VARIABLE, "")))
        self._tracing = tracing = await self._trace(connection, tasks)
        self._ingress = ingress = IngressLane(settings.nats, workspace)
        injector = Injector(stores, assets, reader, clock, self._traces(tracing, "injected"), attachments, ingress)
        sender = self._letter_sender(connection, assets, resolver, StimulusReplay(reader, injector, clock))
        worker = LetterWorker(stores, assets, letters, sender.edits, sender, clock)
        self._scheduler = scheduler = Scheduler(
            stores, assets, is_leader=lambda: lease.leading, traces=self._traces(tracing, "tick")
        )
        board = FlowBoard(observer, scheduler.observe, nudges.observe)
        self._loops = loops = FlowLoops(
            reader, Applier(stores, assets, observer, resolver, reader, worker), board.observe
        )
        board.knows = loops.knows
        service = FlowService(stores, assets, resolver, reader, loops, clock)
        bounds = CallBounds()
        mesh = MeshView(
            connection, reader, observer, resolver, settings.profile, lease, doubts, lambda: bounds.open_streams
        )
        sampling = await SamplingChanges.open(connection, assets, workspace)
        self._term = term = Term(lease, stores, loops, scheduler, observer, sampling.history, nudges, sampling)
        self._gate = gate = LeaderGate(lease)
        loops.stopped = True
        self._server = server = GrpcServer(interceptors=[gate], bounds=bounds)
        hops = SharedFeeds(lambda flow: HopFeed(connection, workspace, flow, mesh.backlog))
        statuses = SharedFeeds(lambda flow: StatusFeed(flow, mesh.flow_status, loops.watching))
        self._feeds = (hops, statuses)
        flows = FlowRpc(service, Rollouts(service), mesh, history, requests, self._stopping, injector, statuses)
        given_up = DeadLetterRpc(letters, worker, doubts, reader, requests, self._stopping)
        facts = FlowFactReader(stores, assets, letters, history)
        why = DiagnosisRpc(FactFinder(connection, reader, facts, observer, settings.agent, lease))
        operations = OperationsRpc(service, OperationView(reader, observer), self._stopping)
        traces = TraceRpc(service, connection, sampling)
        add_stored(server, stores, assets, attachments)
        trials = Trials(reader, resolver, observer, assets)
        add_trial_services(server, trials, worker, requests, self._ring, why)
        add_services(server, flows, given_up, HopRpc(service, connection, hops), traces, operations, why)
        server.add_generic([RegistryPassage(registry)])
        server.announce(REGISTRY_SERVICE)
        for close in (self._stopping.set, hops.close, statuses.close):
            server.on_stop(close)
        figures = MeshMetrics(connection, assets, workspace, lease, observer, board, server, tracing.counts)
        flows.read_mesh = MeshStatusReader(stores, mesh, figures, board).read
        self._operators = operators = OperatorPorts(figures, HealthOfFlows(stores, board, lease), settings)
        await connection.subscribe(subjects.stream_updated_subject(), cb=self._stream_updated)
        await self._serve(tasks, server, lease, term, operators)
        self._tasks += Upkeep(stores, lease, term, clock, self._wake).begin(tasks)
        self._tasks.append(tasks.create_task(keep_swept(attachments, assets, lease, workspace), name="attachments"))

    async def _serve(
        self, tasks: asyncio.TaskGroup, server: GrpcServer, lease: Lease, term: Term, operators: OperatorPorts
    ) -> None:
        """Opens the address, leads if nobody does, and says that it is ready."""
        self.address = await server.start(self._settings.listen)
        lease.address = self._settings.advertise or self.address
        await lease.step(term.begin, term.end)
        await operators.start(tasks)
        self._tasks = [tasks.create_task(lease.run(term.begin, term.end), name="lease")]
        report_ready({"address": self.address})
        log.info("orchestrator serves", address=self.address, leads=lease.leading)

    def _commits_in_groups(self, assets: JetStreamAssets) -> bool:
        return self._settings.profile == SYNCED_PROFILE and not is_fenced(assets.copies)

    async def stop(self) -> None:
        """Ends streams and calls, then loops, then what they stand on."""
        if self._server is not None:
            await self._server.stop(1.0)
        if self._operators is not None:
            await self._operators.stop()
        await end_tasks(self._tasks)
        for feeds in self._feeds:
            await feeds.stop()
        if self._gate is not None:
            await self._gate.close()
        if self._loops is not None:
            await self._loops.stop()
        if self._nudges is not None:
            await self._nudges.stop()
        if self._scheduler is not None:
            await self._scheduler.stop()
        if self._ingress is not None:
            await self._ingress.close()
        if self._tracing is not None:
            await self._tracing.close()
        if self._lease is not None:
            await self._lease.release()
        if self._observer is not None:
            await self._observer.stop()
        if self._registry is not None:
            await self._registry.close()
        if self._connection is not None:
            await close_nats(self._connection)

    def _letter_sender(
        self, connection: Client, assets: JetStreamAssets, resolver: Resolver, starts: StimulusReplay
    ) -> LetterSender:
        assert self._lease is not None
        workspace, age_s = self._settings.workspace, self._settings.letter_limits.age_s
        edits = LetterEdits(connection, workspace, age_s, self._lease.check)
        stimuli, reader, clock = StimulusStore(connection, assets, workspace), starts.reader, starts.clock
        sides = SideDeployments(reader.stores, reader, resolver, clock)
        return LetterSender(reader.stores, assets, edits, reader, clock, stimuli, starts, sides)

    async def _resolver(
        self,
        connection: Client,
        registry: grpc.aio.Channel,
        stores: Stores,
        clock: WallClock,
        group_commits: Callable[[], bool],
    ) -> Resolver:
        assert self._lease is not None
        settings, guard = self._settings, self._lease.check
        bucket = await KvBucket.open(connection, bucket_names.credential_bucket(settings.workspace), guard=guard)
        credentials = CredentialStore(bucket, settings.workspace, self._ring, clock.now)
        return Resolver(registry, stores, clock, settings.ack_wait_s, credentials, group_commits)

    async def _trace(self, connection: Client, tasks: asyncio.TaskGroup) -> Tracing:
        """Traces of ticks and injected messages begin here."""
        tracing, workspace = Tracing(tasks), self._settings.workspace
        documents = await KvBucket.open(connection, bucket_names.deployment_bucket(workspace))
        await tracing.remember(connection, documents, workspace, ALL_FLOWS, self._settings.name or "orchestrator")
        return tracing

    def _observe(self, lease: Lease) -> InstanceObserver:
        agent, workspace = self._settings.agent, self._settings.workspace
        return InstanceObserver(agent, workspace, self._wake, on_work=self._glance, guard=lease.check)

    def _traces(self, tracing: Tracing, kind: str) -> StimulusTraces:
        workspace, instance = self._settings.workspace, self._settings.name or "orchestrator"
        return StimulusTraces(
            tracing.log, kind, lambda flow: Site("headrace-orchestrator", workspace, flow, instance=instance)
        )

    def _wake(self, flow: str) -> None:
        if self._loops is not None:
            self._loops.wake(flow)

    async def _stream_updated(self, message: Msg) -> None:
        """Whoever changed a flow's stream: its loop looks at it."""
        stream = message.subject.rpartition(".")[2]
        if flow := subjects.flow_of_stream(self._settings.workspace, stream):
            self._wake(flow)

    def _glance(self, flow: str) -> None:
        if self._loops is not None:
            self._loops.glance(flow)

    async def _wake_all(self) -> None:
        self._wake("")
