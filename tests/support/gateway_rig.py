"""Everything a gateway needs around it, for tests: a flow's stream on a real broker, its route, a responder
in place of the flow's sidecars, and gateways as real processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from nats.aio.client import Client

from headrace.edge.broker_process import BrokerProcess
from headrace.edge.child_process import ChildProcess, Command, own_module
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.jetstream_lane import NatsLane
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.edge.nats_link import NatsLink
from headrace.edge.object_bucket import ObjectBucket
from headrace.model import answer as answers
from headrace.model import bucket_names, message_ids, subjects
from headrace.model.errors import Conflict
from headrace.model.flow_stream import flow_stream_config, ingress_transform
from headrace.model.route import Route, encode_route
from headrace.ports import Delivery
from headrace.wire.envelope import Envelope, ReplyTo, decode_envelope, encode_envelope, encode_reply

WORKSPACE = "default"
REVISION = "sha256:" + "a" * 64


@dataclass
class Answering:
    """What the responder replies; None from a handler means it keeps silent (and acknowledges)."""

    status: int = 200
    body: bytes = b""
    content_type: str = "application/octet-stream"
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Envelope], Answering | None]


def echo(envelope: Envelope) -> Answering:
    """The request's body and type again."""
    return Answering(body=envelope.body, content_type=envelope.content_type)


class Responder:
    """Pulls a trigger's consumer and answers like a sidecar: store the answer, send the reply, acknowledge."""

    def __init__(self, broker: BrokerProcess, flow: str, handler: Handler) -> None:
        self._broker = broker
        self._flow = flow
        self.handler = handler
        self.seen: list[Envelope] = []
        self.deliveries: list[Delivery] = []
        self.written_at_unix_ns: list[int] = []
        self._queue: asyncio.Queue[Delivery] = asyncio.Queue(maxsize=4096)
        self._connection: Client | None = None

    async def start(self) -> None:
        self._connection = await connect_nats(self._broker.url, "responder")
        self._lane = NatsLane(await NatsLink.connect(self._broker.url, "responder lane"))
        await self._lane.start()
        self._answers = await KvBucket.open(
            self._connection, bucket_names.answer_bucket(WORKSPACE), ttl_s=answers.ANSWER_TTL_S
        )
        self._consumption = self._lane.consume(
            subjects.flow_stream(WORKSPACE, self._flow),
            subjects.step_consumer(1, "hook"),
            credit=1000,
            on_deliveries=self._on_deliveries,
        )
        self._worker = asyncio.create_task(self._work())

    def _on_deliveries(self, deliveries: list[Delivery]) -> None:
        for delivery in deliveries:
            self._queue.put_nowait(delivery)

    async def _work(self) -> None:
        while True:
            delivery = await self._queue.get()
            envelope = decode_envelope(delivery.payload)
            self.seen.append(envelope)
            self.deliveries.append(delivery)
            answering = self.handler(envelope)
            if answering is not None and envelope.reply_to.subject:
                await self.reply(envelope, answering)
            self._lane.acknowledge(delivery).add_done_callback(_ignore)
            self._consumption.release()

    async def reply(self, envelope: Envelope, answering: Answering) -> None:
        """Stores the answer where a key was given, then sends it."""
        written_at_unix_ns = time.time_ns()
        self.written_at_unix_ns.append(written_at_unix_ns)
        raw = encode_reply(
            execution_id=envelope.execution_id,
            status=answering.status,
            body=answering.body,
            sent_at_unix_ns=written_at_unix_ns,
            content_type=answering.content_type,
            headers=answering.headers,
            step="hook",
            deployment=1,
            version=3,
            revision=REVISION,
        )
        if envelope.reply_to.answer_key:
            await self.store(envelope, raw)
        self._lane.send(envelope.reply_to.subject, raw)

    async def store(self, envelope: Envelope, raw: bytes) -> None:
        key = envelope.reply_to.answer_key
        while True:
            entry = await self._answers.get(key)
            value = answers.finished(entry.value if entry else None, execution=envelope.execution_id, reply=raw)
            if entry is None or value is None:
                return
            with suppress(Conflict):
                await self._answers.update(key, value, entry.revision)
                return

    async def stop(self) -> None:
        self._worker.cancel()
        with suppress(asyncio.CancelledError):
            await self._worker
        await self._lane.close(1.0)
        if self._connection is not None:
            await close_nats(self._connection)


def _ignore(future: asyncio.Future[None]) -> None:
    if not future.cancelled():
        future.exception()


@dataclass
class GatewayProcess:
    child: ChildProcess
    address: str
    log_file: Path

    async def stop(self) -> int:
        return await self.child.end(15.0)


class GatewayRig:
    """Make it with a broker, then `open`; `close` ends everything it started."""

    def __init__(self, broker: BrokerProcess, folder: Path) -> None:
        self.broker = broker
        self._folder = folder
        self._responders: list[Responder] = []
        self.gateways: list[GatewayProcess] = []

    async def open(self) -> None:
        self.connection = await connect_nats(self.broker.url, "rig")
        self.assets = JetStreamAssets(self.connection)
        self.routes = await KvBucket.open(self.connection, bucket_names.route_bucket(WORKSPACE))

    async def flow(self, name: str, *, reply_timeout_s: float = 5.0, max_waiting: int = 10_000) -> None:
        """A flow's stream, its trigger's consumer and its route, RUNNING as deployment 1."""
        listed = [subjects.ingress_filter(WORKSPACE, name), subjects.owner_filter(WORKSPACE, name, "d1")]
        config = flow_stream_config(subjects.flow_stream(WORKSPACE, name), listed, max_waiting=max_waiting)
        await self.assets.ensure_stream(config | {"subject_transform": ingress_transform(WORKSPACE, name, "d1")})
        await self.assets.ensure_consumer(
            subjects.flow_stream(WORKSPACE, name),
            {
                "durable_name": subjects.step_consumer(1, "hook"),
                "filter_subject": subjects.data_subject(WORKSPACE, name, "d1", "hook"),
                "ack_policy": "explicit",
                "ack_wait": 30_000_000_000,
                "max_deliver": -1,
                "max_ack_pending": 2000,
                "deliver_policy": "all",
                "replay_policy": "instant",
            },
        )
        await self.route(name, "RUNNING", reply_timeout_s=reply_timeout_s)

    async def hide_ingress(self, name: str) -> None:
        """Publishes to the ingress find no responders, as while a stream has no leader; `flow` undoes it."""
        await self.assets.delete_stream(subjects.flow_stream(WORKSPACE, name))

    async def publish_stimulus(self, flow: str, key: str, body: bytes) -> None:
        """Stores what a gateway that died right afterwards would have stored for this Idempotency-Key."""
        stimulus = message_ids.stimulus_id(flow, "key", key)
        message_id = message_ids.first_message_id(stimulus, "hook")
        raw = encode_envelope(
            message_id=message_id,
            execution_id=message_ids.execution_id(stimulus),
            sent_at_unix_ns=time.time_ns(),
            body=body,
            content_type="text/plain",
            reply_to=ReplyTo(
                subject=subjects.reply_subject(WORKSPACE, "dead"), answer_key=message_ids.answer_key(flow, key)
            ),
        )
        await self.assets.publish(subjects.ingress_subject(WORKSPACE, flow, "hook"), raw, {"Nats-Msg-Id": message_id})

    async def route(self, name: str, state: str, *, reply_timeout_s: float = 5.0, rate_limit: float = 0.0) -> None:
        route = Route(
            name, state, trigger="hook", reply_timeout_s=reply_timeout_s, version=3, deployment=1, rate_limit=rate_limit
        )
        await self.routes.put(name, encode_route(route))

    async def responder(self, flow: str, handler: Handler = echo) -> Responder:
        responder = Responder(self.broker, flow, handler)
        await responder.start()
        self._responders.append(responder)
        return responder

    async def gateway(self, *arguments: str, port: int = 0, **environment: str) -> GatewayProcess:
        log_file = self._folder / f"gateway-{len(self.gateways)}.log"
        command = Command(
            own_module("services.gateway", "--nats", self.broker.url, "--listen", f"127.0.0.1:{port}", *arguments),
            dict(environment),
            log_file=log_file,
        )
        child = ChildProcess.spawn(command, readiness=True)
        try:
            facts = await child.ready(20.0)
        except (ConnectionError, TimeoutError) as error:
            child.kill()
            raise AssertionError(f"gateway did not start: {log_file.read_text()[-2000:]}") from error
        gateway = GatewayProcess(child, str(facts["address"]), log_file)
        self.gateways.append(gateway)
        return gateway

    async def stored(self, flow: str) -> int:
        """Messages in the flow's stream."""
        info = await self.assets.stream_info(subjects.flow_stream(WORKSPACE, flow))
        return int(info["state"]["messages"]) if info else 0

    async def attachments_are_empty(self) -> bool:
        """Nothing at all is in the object store of attachments."""
        return await (await ObjectBucket.open(self.connection, bucket_names.attachment_store(WORKSPACE))).is_empty()

    async def close(self) -> None:
        for gateway in self.gateways:
            await gateway.stop()
        for responder in self._responders:
            await responder.stop()
        await close_nats(self.connection)
