"""The sidecar as a process: connects, starts the component as early as it can, serves, stops in order.

Start is a race on few cores, so imports happen where they are first needed: the broker's documents are read
and the component process is started (its bundle cached) before anything of gRPC is loaded here.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

from headrace.edge.child_process import adopt_orphans
from headrace.edge.log_exporting import LogExporting
from headrace.edge.readiness import report_ready
from headrace.edge.structured_log import get_logger, mask_with
from headrace.edge.tracing import Tracing
from headrace.model import bucket_names, subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan, StepPlan
from headrace.model.errors import HeadraceError, Unavailable
from services.sidecar.bundle_cache import BundleCache
from services.sidecar.component_process import ComponentProcess
from services.sidecar.credentials import StepCredentials
from services.sidecar.domain.lifecycle import State
from services.sidecar.environment import EnvironmentCache
from services.sidecar.log_capture import LogCapture
from services.sidecar.plan_source import PlanSource, step_of
from services.sidecar.settings import Settings

if TYPE_CHECKING:
    from headrace.api.metrics.v1.metrics_pb2 import ProcessMetrics
    from headrace.edge.hop_recorder import HopRecorder
    from headrace.edge.kv_bucket import KvBucket
    from headrace.edge.metrics_responder import MetricsResponder
    from headrace.edge.own_metrics import OwnMetrics
    from services.sidecar.careful_start import CarefulStart
    from services.sidecar.data_plane import DataPlane
    from services.sidecar.instance import Instance
    from services.sidecar.lifecycle_rpc import LifecycleRpc
    from services.sidecar.spare_component import SpareComponent

log = get_logger(__name__)

LANE_CLOSE_LIMIT_S = 2.0
# After each reconnect, and this often besides.
CONNECTION_LOOK_S = 30.0


class SidecarService:
    """See headrace.edge.service_runner.Service. `stop_event` is set when Shutdown was called."""

    def __init__(self, settings: Settings, stop_event: asyncio.Event, spare: SpareComponent | None = None) -> None:
        self._settings = settings
        self._spare = spare
        self._stop_event = stop_event
        self._instance: Instance | None = None
        self._careful: CarefulStart | None = None
        self._server: Any = None
        self._rpc: Any = None
        self._connection: Any = None
        self._lane: Any = None
        self._link: Any = None
        self._hops: Any = None
        self._metrics: Any = None
        self._own_metrics: OwnMetrics | None = None
        self._tracing: Tracing | None = None
        self._exporting: LogExporting | None = None
        self._answers: KvBucket | None = None
        self._broker: Any = None
        self._reconnected = asyncio.Event()
        self._attachments: Any = None
        self._owned: list[asyncio.Task[None]] = []
        self._first: ComponentProcess | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        settings = self._settings
        settings.run_dir.mkdir(parents=True, exist_ok=True)
        adopt_orphans(reap_at_once=False)  # what a component leaves behind ends with it
        plans = PlanSource(settings)
        bundles = BundleCache(settings.cache_dir, settings.registry)
        environments = EnvironmentCache(settings.cache_dir)
        logs = LogCapture(
            flow=settings.flow,
            step=settings.step,
            deployment=settings.deployment,
            instance=settings.instance,
            later=asyncio.get_running_loop().call_later,
        )
        mask_with(logs.mask.known)
        settings.remove_stale_sockets()
        # What is wrong with plan or bundle is told by the instance when it is wanted.
        with contextlib.suppress(HeadraceError):
            self._first = start_early(settings, plans.cached_plan(), bundles, environments, logs, self._spare)
        await self._connect(plans)
        if self._first is None:
            with contextlib.suppress(HeadraceError):
                plan = await plans.plan()
                self._first = start_early(settings, plan, bundles, environments, logs, self._spare)
        await self._open_lane(logs)
        exporting = self._exporting = LogExporting(tasks, settings.workspace)
        logs.export = exporting.exporter.put if exporting.exporter is not None else None
        tracing = self._tracing = Tracing(tasks)
        await tracing.remember(self._connection, plans.bucket, settings.workspace, settings.flow, settings.instance)
        await self._serve(tasks, plans, bundles, environments, logs)
        report_ready({"address": settings.lifecycle_address, "instance": settings.instance})

    async def _connect(self, plans: PlanSource) -> None:
        from headrace.edge.kv_bucket import KvBucket
        from headrace.edge.nats_connection import connect_nats
        from services.sidecar.broker_epoch import BrokerEpoch

        settings = self._settings
        self._connection = await connect_nats(settings.nats_url, settings.instance, on_reconnect=self._note_reconnect)
        bucket = await KvBucket.open(self._connection, bucket_names.deployment_bucket(settings.workspace))
        plans.connect(bucket)
        self._broker = BrokerEpoch(self._connection, bucket)
        await self._broker.look()
        # The floor of generations, and whether to go on by itself, are known before any call is accepted.
        await plans.read_state()

    async def _open_lane(self, logs: LogCapture) -> None:
        from headrace.edge.faulty_lane import lane_with_faults
        from headrace.edge.jetstream_lane import NatsLane
        from headrace.edge.nats_link import NatsLink

        link = await NatsLink.connect(self._settings.nats_url, self._settings.instance)
        self._link = link
        lane = self._lane = lane_with_faults(NatsLane(link))
        await lane.start()
        subject = subjects.log_subject(self._settings.workspace, self._settings.flow, self._settings.step)

        def publish(line: bytes) -> None:
            lane.send(subject, line)  # past the lane's bound it is dropped, and counted

        logs.publish = publish

    async def _serve(
        self,
        tasks: asyncio.TaskGroup,
        plans: PlanSource,
        bundles: BundleCache,
        environments: EnvironmentCache,
        logs: LogCapture,
    ) -> None:
        from headrace.edge.attachment_store import AttachmentAccess
        from headrace.edge.hop_recorder import HopRecorder
        from services.sidecar.careful_start import CarefulStart
        from services.sidecar.data_plane import DataPlane
        from services.sidecar.examination import Examination
        from services.sidecar.instance import Instance
        from services.sidecar.lifecycle_rpc import LifecycleRpc
        from services.sidecar.reclaim import begin_anew, reclaim

        settings = self._settings
        recorder = HopRecorder(settings.instance, settings.deployment, settings.step)
        self._attachments = AttachmentAccess(self._connection, settings.workspace, settings.attachment_limit)
        redelivered_until = 0
        if plans.is_only_replica(settings.step):
            redelivered_until = await reclaim(self._connection, settings)
        careful = self._careful = CarefulStart(settings.deaths_file())

        def make_plane(plan: DeploymentPlan, step: StepPlan, instance: Instance) -> DataPlane:
            return DataPlane(
                plan,
                step,
                self._lane,
                plans,
                tasks,
                recorder=recorder,
                span_log=self._tracing.log if self._tracing is not None else None,
                instance=settings.instance,
                redelivered_until=redelivered_until,
                broker_since=lambda: self._broker.since,
                restart_consumer=partial(begin_anew, self._connection),
                answers=lambda: self._answers,
                on_finished=lambda: instance.supervisor.finished_message() if instance.supervisor else None,
                on_occupancy=instance.occupancy_changed,
                answer_limit_s=settings.answer_limit_s,
                end_component=lambda reason, cause: (
                    instance.supervisor.condemn(reason, cause) if instance.supervisor else None
                ),
                on_leases=instance.status.touch,
                careful=careful,
                attachments=self._attachments.store,
            )

        instance = self._instance = Instance(
            *(settings, plans, bundles, environments, logs, make_plane),
            first=self._first,
            spare=self._spare,
            credentials=StepCredentials(settings.workspace, self._open_credentials, logs.mask),
        )
        self._first = None
        self._go_on(plans, instance)

        await self._answer_questions(recorder)
        self._owned = [
            tasks.create_task(instance.work(), name="instance"),
            tasks.create_task(plans.follow(), name="plans"),
            tasks.create_task(self._open_answers(), name="answers"),
            tasks.create_task(self._until_shutdown(instance), name="shutdown"),
            tasks.create_task(self._watch_connection(), name="connection"),
        ]
        examination = Examination(settings.instance, instance, self._connection, self._link)
        await self._serve_lifecycle(LifecycleRpc(settings.instance, instance, examination.examine))

    async def _serve_lifecycle(self, rpc: LifecycleRpc) -> None:
        from headrace.api.sidecar.v1 import sidecar_pb2_grpc
        from headrace.edge.grpc_server import GrpcServer
        from services.sidecar.lifecycle_rpc import SERVICE_NAME

        settings = self._settings
        self._rpc = rpc
        self._server = GrpcServer(keepalive=not settings.lifecycle_address.startswith("unix:"))
        self._server.add(sidecar_pb2_grpc.add_LifecycleServiceServicer_to_server, self._rpc, SERVICE_NAME)
        self._server.on_stop(self._rpc.end_streams)
        await self._server.start(settings.lifecycle_address)

    async def _answer_questions(self, recorder: HopRecorder) -> None:
        """What anybody may ask this process on NATS: its hops, and all that it counts."""
        from headrace.edge.hop_recorder import HopResponder
        from headrace.edge.metrics_responder import MetricsResponder, tell_spans

        settings = self._settings

        def tell(report: ProcessMetrics) -> None:
            report.flows.add(flow=settings.flow, hops=recorder.snapshot())
            if self._tracing is not None:
                tell_spans(report, self._tracing.counts)

        self._hops = HopResponder(
            self._connection, settings.workspace, settings.flow, lambda _flow: recorder.snapshot()
        )
        self._metrics = MetricsResponder(self._connection, settings.workspace, settings.instance, tell)
        await self._hops.start()
        await self._metrics.start()
        if settings.metrics:
            await self._serve_metrics(settings.metrics, self._metrics)

    async def _serve_metrics(self, address: str, responder: MetricsResponder) -> None:
        """A port that cannot be had is told in the log: it is no reason for an instance not to work."""
        from headrace.edge.own_metrics import OwnMetrics

        def ready() -> bool:
            return self._instance is not None and self._instance.status.state is State.RUNNING

        self._own_metrics = OwnMetrics(ready, report=responder.present)
        try:
            await self._own_metrics.start(address)
        except HeadraceError as error:
            log.error("metrics are not served", error=str(error))

    def _go_on(self, plans: PlanSource, instance: Instance) -> None:
        """What the deployment's state says of this instance, before anybody calls."""
        state = plans.state
        if state is not None:
            instance.admit(state.generation)
            instance.own_by_state(state)
        plans.on_state = instance.own_by_state
        if plans.goes_on_by_itself:
            assert state is not None
            instance.go_on_by_itself(draining=state.phase is DeploymentPhase.DRAINING)

    async def _open_credentials(self) -> KvBucket:
        from headrace.edge.kv_bucket import KvBucket

        return await KvBucket.open(self._connection, bucket_names.credential_bucket(self._settings.workspace))

    async def _open_answers(self) -> None:
        from headrace.edge.kv_bucket import KvBucket
        from headrace.model.answer import ANSWER_TTL_S

        name = bucket_names.answer_bucket(self._settings.workspace)
        while self._answers is None:
            try:
                self._answers = await KvBucket.open(self._connection, name, ttl_s=ANSWER_TTL_S)
            except HeadraceError as error:
                log.debug("answers not reachable", error=str(error))
                await asyncio.sleep(1.0)

    async def _note_reconnect(self) -> None:
        self._reconnected.set()

    async def _watch_connection(self) -> None:
        """The client reconnects for ever; one that gave up all the same (credentials taken away) ends this
        process, so that the agent starts it anew and its exit is seen."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECTION_LOOK_S):
                    await self._reconnected.wait()
            self._reconnected.clear()
            await self._broker.look()
            if self._connection.is_closed:
                raise Unavailable("the connection to the broker was closed for good", reason="BROKER_UNREACHABLE")

    async def _until_shutdown(self, instance: Instance) -> None:
        await instance.shutdown_requested.wait()
        self._stop_event.set()

    async def stop(self) -> None:
        """Stop pulling, finish what is in flight, end the component, flush, close."""
        if self._instance is not None:
            await self._instance.stop()
            if self._careful is not None:
                self._careful.forget()
        elif self._first is not None:
            await self._first.end()
        for task in self._owned:
            task.cancel()
        if self._exporting is not None:
            await self._exporting.close()
        if self._tracing is not None:
            await self._tracing.close()
        for responder in (self._hops, self._metrics, self._own_metrics):
            if responder is not None:
                await responder.stop()
        if self._server is not None:
            await self._server.stop(0.5)
        if self._lane is not None:
            await self._lane.close(LANE_CLOSE_LIMIT_S)
        if self._connection is not None:
            from headrace.edge.nats_connection import close_nats

            await close_nats(self._connection)


def start_early(
    settings: Settings,
    plan: DeploymentPlan | None,
    bundles: BundleCache,
    environments: EnvironmentCache,
    logs: LogCapture,
    spare: SpareComponent | None,
) -> ComponentProcess | None:
    """Starts the component's process if nothing has to be fetched or built; it imports its code meanwhile.
    Nothing of it is called before it is wanted."""
    if plan is None:
        return None
    step = step_of(plan, settings.step)
    logs.of(plan, step)
    bundle = bundles.find(step.pin.digest)
    python = environments.find(bundle.path) if bundle is not None else None
    if bundle is None or python is None:
        return None
    return ComponentProcess.spawn(
        settings, bundle=bundle.path, python=python, entrypoint=bundle.entrypoint, logs=logs, spare=spare
    )
