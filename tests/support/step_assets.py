"""What the orchestrator and the registry would make for one step of a flow: stream, consumers, plan, state, and its
bundle in the cache."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client

from headrace.edge.bundle import pack_folder
from headrace.model import bucket_names, subjects
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
from headrace.model.flow_stream import flow_stream_config, ingress_transform
from services.sidecar.bundle_cache import BundleCache

STEP = "work"
WORKSPACE = "default"
FAST_RETRY = RetryPolicy(attempts=3, backoff_s=0.05, max_delay_s=0.2)

ECHO = """
from headrace.sdk import Component, Context

component = Component()


@component.action
async def work(body: bytes, ctx: Context) -> None:
    await ctx.emit(body)
"""


@dataclass
class StepAssets:
    """Set the fields before anything is made; the step under test is called `work`."""

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
    digest: str = field(default="", init=False)
    connection: Client = field(init=False)

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
    def cache(self) -> Path:
        return self.folder / "cache"

    async def make_streams(self) -> None:
        owner = subjects.deployment_owner(self.deployment)
        listed = [
            subjects.ingress_filter(WORKSPACE, self.flow),
            subjects.owner_filter(WORKSPACE, self.flow, owner),
            subjects.owner_filter(WORKSPACE, self.flow, subjects.cursor_owner(self.deployment)),
        ]
        config: dict[str, Any] = flow_stream_config(
            self.stream,
            listed,
            max_waiting=self.max_waiting,
            copies=self.assets.copies,
            duplicate_window_s=self.duplicate_window_s,
        )
        config["subject_transform"] = ingress_transform(WORKSPACE, self.flow, owner)
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
        await self.deployments.put(bucket_names.plan_key(self.flow, self.deployment), raw)

    async def write_state(self, phase: DeploymentPhase, generation: int | None = None) -> None:
        if generation is not None:
            self.generation = generation
        owners = [
            SlotOwner(self.replica, self.leases[s]) if s in self.leases else SlotOwner(99, 1) for s in range(self.slots)
        ]
        slots = {STEP: tuple(owners)} if self.keyed else {}
        state = DeploymentState(phase=phase, generation=self.generation, replicas={STEP: self.replicas}, slots=slots)
        await self.deployments.put(bucket_names.state_key(self.flow, self.deployment), encode_state(state))
