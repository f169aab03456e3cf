"""The gateway as a service: connections, routes, replies, HTTP; started and stopped in order."""

from __future__ import annotations

import asyncio
import gc
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import msgspec
from nats.aio.client import Client
from nats.aio.msg import Msg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, ExceptionHandler, Receive, Scope, Send

from headrace.api.diagnosis.v1.diagnosis_pb2 import FlowTraffic
from headrace.api.metrics.v1.metrics_pb2 import FlowMetrics, ProcessMetrics
from headrace.edge.attachment_store import AttachmentStore
from headrace.edge.faulty_lane import lane_with_faults
from headrace.edge.hop_recorder import HopResponder
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.metrics_responder import MetricsResponder, tell_spans
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.nats_link import NatsLink
from headrace.edge.own_metrics import OwnMetrics
from headrace.edge.readiness import report_ready
from headrace.edge.structured_log import get_logger
from headrace.edge.trace_keeper import ALL_FLOWS
from headrace.edge.tracing import Tracing
from headrace.model import bucket_names, subjects
from headrace.model.answer import ANSWER_TTL_S
from headrace.model.attachments import MAX_ATTACHMENT_BYTES
from headrace.model.names import DEFAULT_WORKSPACE
from headrace.ports import JetStreamLane
from services.gateway.answer_book import AnswerBook
from services.gateway.answer_counts import AnswerCounts
from services.gateway.domain import refusals
from services.gateway.domain.admission import Admission
from services.gateway.domain.refusals import Refusal
from services.gateway.hook import Hook
from services.gateway.hop_log import HopLog
from services.gateway.http_connection import HEAD_LIMIT_S
from services.gateway.http_server import HttpServer
from services.gateway.ingress import Ingress
from services.gateway.large_replies import LargeReplies
from services.gateway.received_body import BodyReceiver
from services.gateway.reply_desk import ReplyDesk
from services.gateway.request_body import BODY_LIMIT_S
from services.gateway.root_spans import RootSpans
from services.gateway.routes import RouteTable
from services.gateway.stimulus_exchange import StimulusExchange
from services.gateway.upload_slots import MAX_UPLOADS, UploadSlots

log = get_logger(__name__)

START_LIMIT_S = 10.0
CLOSE_LIMIT_S = 1.0


@dataclass(frozen=True, slots=True)
class GatewaySettings:
    """`name` is drawn when empty; `grace_s` is how long requests in flight may take when the gateway stops."""

    nats_url: str
    host: str = "127.0.0.1"
    port: int = 0
    workspace: str = DEFAULT_WORKSPACE
    name: str = ""
    grace_s: float = 2.0
    max_requests: int = 2_000
    head_limit_s: float = HEAD_LIMIT_S
    body_limit_s: float = BODY_LIMIT_S
    max_uploads: int = MAX_UPLOADS
    attachment_limit: int = MAX_ATTACHMENT_BYTES
    # Address of /metrics of this process; empty: none.
    metrics: str = ""


class Gateway:
    """One gateway process; any number run side by side."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._name = settings.name or f"gateway-{secrets.token_hex(4)}"
        self._admission = Admission(max_requests=settings.max_requests)
        self._desk = ReplyDesk()
        self._hops = HopLog(self._name)
        self._counts = AnswerCounts()
        self._metrics: OwnMetrics | None = None
        self._address = ""
        self._connection: Client | None = None
        self._lane: NatsLane | None = None
        self._tracing: Tracing | None = None
        self._hook: Hook | None = None
        self._server: HttpServer | None = None
        self._routes_task: asyncio.Task[None] | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        settings = self._settings
        self._connection = await connect_nats(settings.nats_url, self._name, timeout_s=START_LIMIT_S)
        link = await NatsLink.connect(settings.nats_url, self._name, timeout_s=START_LIMIT_S)
        self._lane = lane_with_faults(NatsLane(link))
        await self._lane.start()
        routes = RouteTable(
            await KvBucket.open(self._connection, bucket_names.route_bucket(settings.workspace)),
        )
        answers = await KvBucket.open(
            self._connection, bucket_names.answer_bucket(settings.workspace), ttl_s=ANSWER_TTL_S
        )
        attachments = await AttachmentStore.open(self._connection, settings.workspace, settings.attachment_limit)
        self._routes_task = tasks.create_task(routes.follow(), name="routes")
        self._tracing = Tracing(tasks)
        documents = await KvBucket.open(self._connection, bucket_names.deployment_bucket(settings.workspace))
        await self._tracing.remember(self._connection, documents, settings.workspace, ALL_FLOWS, self._name)
        self._hook = self._make_hook(routes, answers, attachments, self._lane, self._tracing)
        self._lane.listen(subjects.reply_subject(settings.workspace, self._name), self._desk.on_message)
        await self._lane.flush()
        await routes.wait_until_read(START_LIMIT_S)
        self._server = HttpServer(
            make_app(self._hook, lambda: self._ready), settings.host, settings.port, head_limit_s=settings.head_limit_s
        )
        self._address = await self._server.start(tasks)
        await self._subscribe()
        log.info("gateway serves", address=self._address, gateway=self._name)
        gc.freeze()  # what is there now stays: looking through all of it would hold up requests for milliseconds
        report_ready({"address": self._address, "name": self._name})

    def _make_hook(
        self, routes: RouteTable, answers: KvBucket, attachments: AttachmentStore, lane: JetStreamLane, tracing: Tracing
    ) -> Hook:
        settings = self._settings
        roots = RootSpans(tracing.log, settings.workspace, self._name)
        uploads = UploadSlots(attachments, settings.max_uploads)
        exchange = StimulusExchange(
            workspace=settings.workspace,
            gateway=self._name,
            ingress=Ingress(lane, settings.workspace, routes),
            desk=self._desk,
            answers=AnswerBook(answers),
            hops=self._hops,
            counts=self._counts,
            roots=roots,
            uploads=uploads,
            large=LargeReplies(attachments),
        )
        return Hook(
            routes=routes,
            admission=self._admission,
            counts=self._counts,
            roots=roots,
            bodies=BodyReceiver(uploads),
            exchange=exchange,
            body_limit_s=settings.body_limit_s,
        )

    async def _subscribe(self) -> None:
        assert self._connection is not None
        workspace = self._settings.workspace
        await self._connection.subscribe(subjects.gateway_presence_subject(workspace), cb=self._answer_presence)
        await self._connection.subscribe(subjects.traffic_request_subject(workspace, "*"), cb=self._answer_traffic)
        await HopResponder(self._connection, workspace, "*", self._hops.snapshot).start()
        responder = MetricsResponder(self._connection, workspace, self._name, self._tell)
        await responder.start()
        self._metrics = OwnMetrics(lambda: self._ready, report=responder.present)
        await self._metrics.start(self._settings.metrics)
        await self._connection.flush()

    @property
    def _ready(self) -> bool:
        """It takes requests, and the broker takes what comes of them."""
        stopping = self._hook is None or self._hook.stopping
        return not stopping and self._connection is not None and self._connection.is_connected

    def _tell(self, report: ProcessMetrics) -> None:
        """What this gateway counted, for the metrics."""
        report.gateway.requests_in_work = self._admission.requests
        if self._tracing is not None:
            tell_spans(report, self._tracing.counts)
        for flow in sorted({*self._hops.flows(), *self._counts.flows()}):
            report.flows.append(FlowMetrics(flow=flow, hops=self._hops.snapshot(flow), answers=self._counts.of(flow)))

    async def _answer_presence(self, message: Msg) -> None:
        if message.reply:
            await message.respond(self._address.encode())

    async def _answer_traffic(self, message: Msg) -> None:
        if not message.reply:
            return
        last, refused = self._counts.lately(message.subject.rpartition(".")[2])
        traffic = FlowTraffic(gateway=self._name, address=self._address, refused=refused)
        if last:
            traffic.last_request_time.FromNanoseconds(int(last * 1e9))
        await message.respond(traffic.SerializeToString())

    async def stop(self) -> None:
        """Refuses new requests, waits up to the grace for those in flight, answers the rest 503, closes."""
        if self._hook is not None:
            await self._hook.finish(self._settings.grace_s)
        abandoned = self._desk.stop_waiting()
        if abandoned:
            log.warning("requests answered before their reply came", count=abandoned)
        if self._server is not None:
            await self._server.close(CLOSE_LIMIT_S + 1.0)
        if self._tracing is not None:
            await self._tracing.close()
        if self._metrics is not None:
            await self._metrics.stop()
        if self._routes_task is not None:
            self._routes_task.cancel()
        if self._lane is not None:
            await self._lane.close(CLOSE_LIMIT_S)
        if self._connection is not None:
            await close_nats(self._connection, CLOSE_LIMIT_S)


def make_app(hook: Hook, ready: Callable[[], bool]) -> ASGIApp:
    """Everything under /hook goes straight to the hook (Starlette's router cannot match every path, and costs
    more than the hook does); the rest is Starlette's. Errors are JSON everywhere."""

    async def health(request: Request) -> Response:
        if hook.stopping:
            return _refusal_response(refusals.gateway_stopping())
        state = {"status": "serving", "requests": hook.requests_in_work}
        return Response(msgspec.json.encode(state), media_type="application/json")

    async def readiness(request: Request) -> Response:
        """Not ready before it drains, and while the broker is away: elsewhere requests are answered sooner."""
        if not ready():
            return _refusal_response(refusals.gateway_stopping() if hook.stopping else refusals.broker_unavailable())
        return Response(b'{"status":"ready"}', media_type="application/json")

    async def refuse(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        if status == 405:
            return _refusal_response(refusals.method_not_allowed(request.method, "GET"))
        if status == 404:
            return _refusal_response(refusals.not_found(request.url.path))
        return _refusal_response(Refusal(status, "INTERNAL", "the gateway failed; see its log"))

    handlers: dict[object, ExceptionHandler] = {HTTPException: refuse, 500: refuse}
    routes = [Route("/healthz", health, methods=["GET"]), Route("/readyz", readiness, methods=["GET"])]
    others = Starlette(routes=routes, exception_handlers=handlers)

    async def dispatch(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["raw_path"].startswith(b"/hook/"):
            await hook(scope, receive, send)
        else:
            await others(scope, receive, send)

    return dispatch


def _refusal_response(refusal: Refusal) -> Response:
    response = Response(refusal.body(), status_code=refusal.status)
    response.raw_headers[:0] = refusal.headers()
    return response
