"""A real sidecar with a real component on a real broker, without orchestrator, agent or registry.

`SidecarBench` makes by hand what those would: stream, consumers, plan, state, the bundle in the cache; it
starts the sidecar as a process, feeds inputs, and reads what arrives at the next step, at the caller and among
the dead letters.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import msgspec
import nats.errors
from nats.aio.client import Client

from headrace.api.sidecar.v1 import sidecar_pb2, sidecar_pb2_grpc
from headrace.edge.bundle import pack_folder
from headrace.edge.child_process import ChildProcess, Command, own_module
from headrace.edge.grpc_channel import open_channel
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.kv_bucket import KvBucket
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.deployment import (
    DeploymentPhase,
    DeploymentPlan,
    DeploymentState,
    PinPlan,
    SlotOwner,
    StepPlan,
    encode_plan,
    encode_state,
    plan_digest,
)
from headrace.model.flow_spec import RetryPolicy
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.model.names import instance_name
from headrace.model.slots import keying
from headrace.wire.envelope import (
    DeadLetter,
    Envelope,
    Reply,
    ReplyTo,
    decode_dead_letter,
    decode_envelope,
    decode_reply,
    encode_envelope,
)
from services.sidecar.bundle_cache import BundleCache
from tests.support.eventually import eventually

STEP = "work"
WORKSPACE = "default"
REPLY_SUBJECT = "hr.default._reply.test"
FAST_RETRY = RetryPolicy(attempts=3, backoff_s=0.05, max_delay_s=0.2)

ECHO = """
from headrace.sdk import Component, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(body)
"""


@dataclass
class Arrived:
    """One message stored on an edge."""

    envelope: Envelope
    message_id: str
    sequence: int
    subject: str = ""


@dataclass
class SidecarBench:
    """Set the fields before `prepare`; the step under test is called `work`."""

    nats_url: str
    folder: Path
    source: str = ECHO
    function: str = "work"
    kind: str = "action"
    receivers: tuple[str, ...] = ("next",)
    prefetch: int = 64
    timeout_s: float = 30.0
    retry: RetryPolicy = FAST_RETRY
    rate_limit: float = 0.0
    config: dict[str, Any] = field(default_factory=dict)
    ack_wait_s: float = 30.0
    next_ack_wait_s: float = 60.0
    max_waiting: int = 10_000
    flow: str = "bench"
    deployment: int = 1
    phase: DeploymentPhase = DeploymentPhase.ACTIVE
    generation: int = 1
    registry: str = ""
    component_start_limit_s: float = 20.0
    log_level: str = "warning"
    variables: dict[str, str] = field(default_factory=dict)
    """Further variables of the sidecar's environment."""
    replica: int = 0
    replicas: int = 1
    key: str = ""
    slots: int = 1
    exactly_once: bool = False
    receiver_key: str = ""
    receiver_slots: int = 1
    # Of a keyed step: the generation of each slot that this replica owns; all of them at 1 where not set.
    owned: dict[int, int] | None = None
    duplicate_window_s: float = 120.0
    # HEADRACE_FAULTS of the next start (docs/faults.md).
    faults: str = ""
    joined: bool = field(default=False, init=False)
    digest: str = field(default="", init=False)
    connection: Client = field(init=False)
    sidecar: ChildProcess | None = field(default=None, init=False)
    address: str = field(default="", init=False)
    output: list[bytes] = field(default_factory=list, init=False)
    replies: list[Reply] = field(default_factory=list, init=False)

    # Making the world

    async def prepare(self) -> None:
        """Connects, makes stream, consumers and documents, and puts the bundle into the cache."""
        self.connection = await connect_nats(self.nats_url, "bench")
        self.assets = JetStreamAssets(self.connection)
        self.deployments = await KvBucket.open(self.connection, subjects.deployment_bucket(WORKSPACE))
        self.make_bundle()
        await self._make_streams()
        await self.write_plan()
        await self.write_state(self.phase)

        await self.listen_for_replies()

    async def listen_for_replies(self) -> None:
        """As a gateway does; `replies_subscription` ends it."""

        async def take_reply(message: Any) -> None:
            self.replies.append(decode_reply(message.data))

        self.replies_subscription = await self.connection.subscribe(REPLY_SUBJECT, cb=take_reply)
        await self.connection.flush()

    def make_bundle(self) -> None:
        """Packs the source and puts it into the cache."""
        bundle = self.folder / "bundle"
        bundle.mkdir(parents=True, exist_ok=True)
        (bundle / "work.py").write_text(self.source)
        (bundle / "component.yaml").write_text(
            f"name: bench\nentrypoint: work:component\nfunctions:\n  {self.function}: {{kind: {self.kind}}}\n"
        )
        with pack_folder(bundle) as packed:
            self.digest = packed.digest
            BundleCache(self.cache, "").admit(packed.path, packed.digest)

    @property
    def run_dir(self) -> Path:
        """Short, since socket paths have a limit."""
        return Path(f"/tmp/hr-{os.getpid()}-{abs(hash(self.folder)) % 10**8}")

    @property
    def cache(self) -> Path:
        return self.folder / "cache"

    async def _make_streams(self) -> None:
        owner = subjects.deployment_owner(self.deployment)
        config: dict[str, Any] = {
            "name": self.stream,
            "subjects": [
                subjects.ingress_filter(WORKSPACE, self.flow),
                subjects.owner_filter(WORKSPACE, self.flow, owner),
                subjects.owner_filter(WORKSPACE, self.flow, subjects.cursor_owner(self.deployment)),
            ],
            "subject_transform": {
                "src": subjects.ingress_filter(WORKSPACE, self.flow),
                "dest": subjects.transform_destination(WORKSPACE, self.flow, owner),
            },
            "retention": "workqueue",
            "storage": "file",
            "discard": "new",
            "discard_new_per_subject": True,
            "max_msgs_per_subject": self.max_waiting,
            "duplicate_window": int(self.duplicate_window_s * 1e9),
            "allow_atomic": True,
            "allow_rollup_hdrs": True,
            "num_replicas": self.assets.copies,
        }
        await self.assets.create_stream(config)
        self.stream_config = config
        for step in self.receivers if self.keyed else (STEP, *self.receivers):
            await self.make_consumer(step)
        for slot, generation in self.leases.items():
            await self.make_slot_consumer(slot, generation)
        for name, pattern in (
            (subjects.dead_letter_stream(WORKSPACE, self.flow), subjects.dead_letter_filter(WORKSPACE, self.flow)),
            (subjects.log_stream(WORKSPACE), subjects.log_filter(WORKSPACE)),
            (subjects.doubt_stream(WORKSPACE), subjects.doubt_filter(WORKSPACE)),
        ):
            await self.assets.create_stream({"name": name, "subjects": [pattern], "storage": "file"})

    @property
    def keyed(self) -> bool:
        return bool(self.key) or self.exactly_once

    @property
    def leases(self) -> dict[int, int]:
        """Slots of this replica, with their generations."""
        if not self.keyed:
            return {}
        return dict.fromkeys(range(self.slots), 1) if self.owned is None else self.owned

    async def make_consumer(self, step: str) -> None:
        await self._make_durable(step, subjects.step_consumer(self.deployment, step), self.edge(step, "*"))

    async def make_slot_consumer(self, slot: int, generation: int) -> None:
        name = subjects.slot_consumer(self.deployment, STEP, slot, generation)
        await self._make_durable(STEP, name, self.edge(STEP, slot))

    async def hand_over(self, slot: int, old: int, new: int) -> None:
        """What the orchestrator does once the old owner is done or given up: its durable goes, the next one comes."""
        await self.assets.delete_consumer(self.stream, subjects.slot_consumer(self.deployment, STEP, slot, old))
        await self.make_slot_consumer(slot, new)

    async def _make_durable(self, step: str, name: str, subject: str) -> None:
        await self.assets.ensure_consumer(
            self.stream,
            {
                "durable_name": name,
                "filter_subject": subject,
                "ack_policy": "explicit",
                # `take` reads the other edges, and may hold a whole batch for a while.
                "ack_wait": int((self.ack_wait_s if step == STEP else self.next_ack_wait_s) * 1e9),
                "max_deliver": -1,
                "max_ack_pending": 1000,
            },
        )

    @property
    def stream(self) -> str:
        return subjects.flow_stream(WORKSPACE, self.flow)

    def edge(self, step: str, slot: int | str = 0) -> str:
        owner = subjects.deployment_owner(self.deployment)
        return subjects.data_subject(WORKSPACE, self.flow, owner, step).removesuffix("0") + str(slot)

    def plan(self) -> DeploymentPlan:
        pin = PinPlan("bench", 1, self.digest, "", "", "")
        work = StepPlan(
            name=STEP,
            kind=self.kind,
            function=self.function,
            pin=pin,
            config=self.config,
            receivers=self.receivers,
            prefetch=self.prefetch,
            timeout_s=self.timeout_s,
            retry=self.retry,
            rate_limit=self.rate_limit,
            key=self.key,
            slots=self.slots,
            exactly_once=self.exactly_once,
        )
        others = tuple(
            msgspec.structs.replace(
                work,
                name=name,
                kind="action",
                receivers=(),
                key=self.receiver_key,
                slots=self.receiver_slots,
                exactly_once=False,
            )
            for name in self.receivers
        )
        return DeploymentPlan(
            workspace=WORKSPACE,
            flow=self.flow,
            flow_type="realtime",
            deployment=self.deployment,
            version=1,
            entry=STEP,
            steps=(work, *others),
            max_waiting=self.max_waiting,
            reply_timeout_s=10.0,
            parking_epoch=1,
            ack_wait_s=self.ack_wait_s,
            duplicate_window_s=self.duplicate_window_s,
        )

    async def write_plan(self) -> None:
        raw = encode_plan(self.plan())
        self.plan_digest = plan_digest(raw)
        await self.deployments.put(subjects.plan_key(self.flow, self.deployment), raw)

    async def write_state(self, phase: DeploymentPhase, generation: int | None = None) -> None:
        if generation is not None:
            self.generation = generation
        owners = [
            SlotOwner(self.replica, self.leases[s]) if s in self.leases else SlotOwner(99, 1) for s in range(self.slots)
        ]
        slots = {STEP: tuple(owners)} if self.keyed else {}
        state = DeploymentState(phase=phase, generation=self.generation, replicas={STEP: self.replicas}, slots=slots)
        await self.deployments.put(subjects.state_key(self.flow, self.deployment), encode_state(state))

    # The sidecar

    def environment(self) -> dict[str, str | None]:
        return {
            **self.variables,
            "HEADRACE_NATS_URL": self.nats_url,
            "HEADRACE_FAULTS": self.faults,
            "HEADRACE_REGISTRY": self.registry,
            "HEADRACE_CACHE_DIR": str(self.cache),
            "HEADRACE_RUN_DIR": str(self.run_dir),
            "HEADRACE_COMPONENT_START_LIMIT_S": str(self.component_start_limit_s),
            "HEADRACE_WORKSPACE": WORKSPACE,
            "HEADRACE_FLOW": self.flow,
            "HEADRACE_DEPLOYMENT": str(self.deployment),
            "HEADRACE_STEP": STEP,
            "HEADRACE_REPLICA": str(self.replica),
            "HEADRACE_PLAN_DIGEST": self.plan_digest,
            "HEADRACE_INSTANCE": instance_name(WORKSPACE, self.flow, self.deployment, STEP, self.replica),
        }

    async def start(self, *, ready_within_s: float = 20.0) -> None:
        """Starts the sidecar's process; returns when it serves its Lifecycle."""
        command = Command(
            own_module("services.sidecar", "--log-level", self.log_level),
            self.environment(),
            on_output=self.output.append,
        )
        self.sidecar = ChildProcess.spawn(command, readiness=True)
        try:
            facts = await self.sidecar.ready(ready_within_s)
        except ConnectionError as error:
            raise AssertionError(self.sidecar_log()) from error
        self.address = str(facts["address"])
        self.channel = open_channel(self.address)
        self.lifecycle = sidecar_pb2_grpc.LifecycleServiceStub(self.channel)  # type: ignore[no-untyped-call]

    def sidecar_log(self) -> str:
        return b"".join(self.output).decode(errors="replace")

    async def status(self) -> sidecar_pb2.InstanceStatus:
        answer = await self.lifecycle.GetStatus(sidecar_pb2.GetStatusRequest())
        return answer.status  # type: ignore[no-any-return]

    async def until(
        self, check: Callable[[sidecar_pb2.InstanceStatus], object], *, within_s: float = 15.0
    ) -> sidecar_pb2.InstanceStatus:
        """The first status that passes the check; the sidecar's log is shown when none does."""
        seen: list[Any] = []

        async def look() -> bool:
            try:
                seen[:] = [await self.status()]
            except grpc.aio.AioRpcError as error:
                raise AssertionError(f"{error.code()}: {error.details()}") from error
            return bool(check(seen[0]))

        try:
            await eventually(look, within_s=within_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{seen[0] if seen else ''}\n{self.sidecar_log()}") from error
        return seen[0]  # type: ignore[no-any-return]

    async def until_active(self, *, within_s: float = 15.0) -> sidecar_pb2.InstanceStatus:
        return await self.until(lambda status: status.progress == sidecar_pb2.PROGRESS_ACTIVE, within_s=within_s)

    async def run(self) -> None:
        """`prepare`, `start` and `until_active`."""
        await self.prepare()
        await self.start()
        await self.until_active()

    async def join(self, other: SidecarBench, *, replica: int, owned: dict[int, int]) -> None:
        """Is a further instance of another bench's step, on its stream and documents, with these slots."""
        self.connection, self.assets, self.deployments = other.connection, other.assets, other.deployments
        self.replica, self.replicas, self.owned = replica, replica + 1, owned
        self.stream_config, self.joined = other.stream_config, True
        self.make_bundle()
        await self.write_plan()
        await self.write_state(self.phase, other.generation + 1)

    def pause(self) -> None:
        """SIGSTOP of the sidecar; its component goes on."""
        assert self.sidecar is not None
        self.sidecar.signal(19)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.sidecar is not None
        self.sidecar.signal(18)

    async def kill_sidecar(self) -> None:
        """kill -9 of the sidecar alone; its component follows by the parent-death signal."""
        assert self.sidecar is not None
        self.sidecar.signal(9)
        await self.sidecar.wait()
        await self.channel.close()

    # Messages

    def stimulus(self, label: str) -> str:
        return stimulus_id(self.flow, "inject", label)

    async def inject(
        self, body: bytes, label: str = "", *, reply: bool = False, answer_key: str = "", headers: Any = None
    ) -> str:
        """Publishes a stimulus to the ingress; answers the id of the input message."""
        stimulus = self.stimulus(label or uuid.uuid4().hex)
        message_id = first_message_id(stimulus, STEP)
        payload = encode_envelope(
            message_id=message_id,
            execution_id=execution_id(stimulus),
            sent_at_unix_ns=time.time_ns(),
            body=body,
            headers=headers,
            reply_to=ReplyTo(subject=REPLY_SUBJECT, answer_key=answer_key) if reply else None,
        )
        slot = keying(self.key, self.slots).place(headers or {}, body, message_id).slot
        subject = subjects.ingress_subject(WORKSPACE, self.flow, STEP, slot)
        await self.publish(subject, payload, message_id)
        return message_id

    async def publish(self, subject: str, payload: bytes, message_id: str) -> None:
        jetstream = self.connection.jetstream(timeout=5)

        async def stored() -> bool:
            try:
                await jetstream.publish(subject, payload, headers={"Nats-Msg-Id": message_id})
            except (nats.errors.Error, TimeoutError) as error:
                # A broker that has just come back has no stream yet; the id makes a repeat harmless.
                raise AssertionError(f"not stored: {error!r}") from error
            return True

        await eventually(stored)

    async def take(self, count: int, step: str = "next", *, within_s: float = 15.0) -> list[Arrived]:
        """Takes (and acknowledges) that many messages from an edge."""
        found: list[Arrived] = []
        deadline = time.monotonic() + within_s
        jetstream = self.connection.jetstream(timeout=5)
        consumer = subjects.step_consumer(self.deployment, step)
        subscription = await jetstream.pull_subscribe_bind(consumer, self.stream)
        try:
            while len(found) < count:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise AssertionError(f"{len(found)} of {count} arrived at {step}\n{self.sidecar_log()}")
                with contextlib.suppress(TimeoutError):
                    for message in await subscription.fetch(min(count - len(found), 500), timeout=min(left_s, 1.0)):
                        headers = message.headers or {}
                        envelope = decode_envelope(message.data)
                        sequence = message.metadata.sequence.stream
                        found.append(Arrived(envelope, headers["Nats-Msg-Id"], sequence, message.subject))
                        await message.ack()
        finally:
            await subscription.unsubscribe()
        await self.connection.flush()  # the acknowledgements, too, are with the broker
        return found

    async def waiting(self, step: str = "next") -> int:
        """Messages stored on an edge and not yet acknowledged by its step."""
        info = await self.assets.stream_info(self.stream, self.edge(step, "*"))
        assert info is not None
        return sum((info["state"].get("subjects") or {}).values())

    async def until_done(self, *, within_s: float = 15.0) -> None:
        """Until every input of the step is acknowledged."""

        async def check() -> bool:
            return await self.waiting(STEP) == 0

        await eventually(check, within_s=within_s)

    async def dead_letters(self) -> list[DeadLetter]:
        """All dead letters so far, oldest first."""
        return [
            decode_dead_letter(raw) for raw in await self._stored(subjects.dead_letter_stream(WORKSPACE, self.flow))
        ]

    async def doubts(self) -> list[DeadLetter]:
        """Records of messages in doubt, oldest first."""
        return [decode_dead_letter(raw) for raw in await self._stored(subjects.doubt_stream(WORKSPACE))]

    async def log_lines(self) -> list[bytes]:
        """All log lines so far, serialized."""
        return await self._stored(subjects.log_stream(WORKSPACE))

    async def _stored(self, stream: str) -> list[bytes]:
        jetstream = self.connection.jetstream(timeout=5)
        info = await jetstream.stream_info(stream)
        found = []
        for sequence in range(max(1, info.state.first_seq), info.state.last_seq + 1):
            found.append((await jetstream.get_msg(stream, sequence)).data or b"")
        return found

    async def close(self) -> None:
        if self.sidecar is not None:
            with contextlib.suppress(AttributeError):
                await self.channel.close()
            await self.sidecar.end(3.0)
        shutil.rmtree(self.run_dir, ignore_errors=True)
        with contextlib.suppress(AttributeError):
            if not self.joined:
                await close_nats(self.connection)


@contextlib.asynccontextmanager
async def sidecar_bench(nats_url: str, folder: Path, **fields: Any) -> AsyncIterator[SidecarBench]:
    """A bench that is closed at the end; call `run`, or `prepare` and `start`."""
    bench = SidecarBench(nats_url, folder, **fields)
    try:
        yield bench
    finally:
        async with asyncio.timeout(20):
            await bench.close()
