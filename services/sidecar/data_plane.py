"""The moving parts of one instance's data plane, put together: outbox, replies, delivery loop, listener."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from headrace.edge.attachment_store import Filing, named_by
from headrace.edge.grouping_lane import GroupingLane
from headrace.edge.stimulus_traces import StimulusTraces
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from services.sidecar.attached_outputs import AttachedOutputs
from services.sidecar.component_spans import ComponentSpans
from services.sidecar.delivery_loop import DeliveryLoop
from services.sidecar.domain.doubt import in_doubt
from services.sidecar.edge_rules import rules_of
from services.sidecar.hop_phases import HopPhases, step_site
from services.sidecar.input_path import InputPath, PlainPath, new_counters
from services.sidecar.listener import ListenerFeed
from services.sidecar.outbox import Outbox
from services.sidecar.pace import Pace
from services.sidecar.reply_sender import ReplySender
from services.sidecar.slot import RestartConsumer, SlotLease
from services.sidecar.slot_path import SlotPath
from services.sidecar.timers import Timers
from services.sidecar.transfers import Transfers

if TYPE_CHECKING:
    from headrace.api.attachment.v1.attachment_pb2 import Attachment
    from headrace.edge.attachment_store import AttachmentStore
    from headrace.edge.hop_recorder import HopRecorder
    from headrace.edge.kv_bucket import KvBucket
    from headrace.edge.span_log import SpanLog
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from headrace.ports import ComponentStream, Delivery, JetStreamLane
    from services.sidecar.careful_start import CarefulStart
    from services.sidecar.component_process import ComponentProcess
    from services.sidecar.held_input import HeldInput
    from services.sidecar.outbox import Blocked
    from services.sidecar.plan_source import PlanSource

log = get_logger(__name__)

STOP_PULLING_LIMIT_S = 1.0


class DataPlane:
    """`tasks` owns its loops; `on_occupancy` is called when it becomes empty or is no longer, `on_leases` when the
    slots of a keyed step change that `leases` shows."""

    def __init__(
        self,
        plan: DeploymentPlan,
        step: StepPlan,
        lane: JetStreamLane,
        plans: PlanSource,
        tasks: asyncio.TaskGroup,
        *,
        recorder: HopRecorder,
        span_log: SpanLog | None = None,
        instance: str = "",
        redelivered_until: int = 0,
        restart_consumer: RestartConsumer,
        broker_since: Callable[[], float],
        answers: Callable[[], KvBucket | None],
        on_finished: Callable[[], None],
        on_occupancy: Callable[[], None],
        end_component: Callable[[str, str], None],
        answer_limit_s: float,
        careful: CarefulStart | None = None,
        on_leases: Callable[[], None],
        attachments: Callable[[], Awaitable[AttachmentStore]],
    ) -> None:
        self._started_at = time.time()
        if plan.group_commits:
            lane = _grouping(lane, plan, step)
        self._step, self._lane, self._tasks = step, lane, tasks
        self.counters = new_counters()
        self._rules = rules_of(plan, step, self.counters, tasks)
        self._timers = Timers()
        self._active = self._gave_way = False
        self._leaving: asyncio.Task[None] | None = None
        self._on_occupancy = on_occupancy
        self._emptied = asyncio.Event()
        self.outbox = self._make_outbox(plans)
        self._replies = ReplySender(lane, answers)
        hops = HopPhases(plan, step, recorder, span_log=span_log, instance=instance, inputs=lambda: self._path.inputs())
        self.component_spans: ComponentSpans | None = None
        if span_log is not None and span_log.exporter is not None:
            self.component_spans = ComponentSpans(span_log.exporter, hops.site, span_log.counts)
        recorder.count_with(lambda: self.counters, self._holding, revision=step.pin.digest)
        self._slots = self._slot_path(plan, plans, hops, restart_consumer, instance, on_leases) if step.keyed else None
        doubtful = partial(self._doubtful, plan, plans, broker_since)
        self._path: InputPath = self._slots or self._plain_path(plan, hops, redelivered_until, doubtful)
        self._transfers = Transfers(plan.flow, attachments, self._references_of, self._filing, tasks)
        self._attached = AttachedOutputs(self._transfers, tasks)
        self.loop = DeliveryLoop(
            step,
            self._path,
            hops,
            self._timers,
            self.counters,
            ack_wait_s=plan.ack_wait_s,
            on_finished=on_finished,
            end_component=end_component,
            answer_limit_s=answer_limit_s,
            careful=careful,
            rules=self._rules,
            attached=self._attached,
            passthrough=plan.passthrough,
            on_stuck=on_leases,
            pace=self._pace(step.rate_limit, plans),
        )
        self._listener = self._listener_feed(plan, plans, span_log, instance) if step.kind == "listener" else None
        self._flusher = tasks.create_task(self._replies.run(), name="replies")

    def _plain_path(
        self, plan: DeploymentPlan, hops: HopPhases, redelivered_until: int, doubtful: Callable[[Delivery], bool]
    ) -> PlainPath:
        return PlainPath(
            plan,
            self._step,
            self._lane,
            self.outbox,
            self._replies,
            hops,
            self._timers,
            self.counters,
            on_occupancy=self._changed,
            redelivered_until=redelivered_until,
            doubtful=doubtful,
        )

    def _references_of(self, call: int) -> list[Attachment] | None:
        held = self.loop.running(call)
        return list(named_by(held.envelope)) if held is not None else None

    def _filing(self, call: int) -> Filing | None:
        """An input keeps what is uploaded in its call until it is acknowledged; a listener's emit has none."""
        if not call:
            return Filing(uuid4().hex) if self._listener is not None else None
        held = self.loop.running(call)
        return Filing(held.message_id, held.delivery.stream_sequence) if held is not None else None

    def _make_outbox(self, plans: PlanSource) -> Outbox:
        return Outbox(
            self._lane,
            self._timers,
            self.counters,
            retired=lambda: plans.retired,
            no_responders=plans.ask_again,
            on_idle=self._changed,
        )

    def _slot_path(
        self,
        plan: DeploymentPlan,
        plans: PlanSource,
        hops: HopPhases,
        restart_consumer: RestartConsumer,
        instance: str,
        on_leases: Callable[[], None],
    ) -> SlotPath:
        return SlotPath(
            plan,
            self._step,
            self._lane,
            self.outbox,
            self._replies,
            hops,
            self._timers,
            self._tasks,
            self.counters,
            restart_consumer,
            instance=instance,
            retired=lambda: plans.retired,
            no_responders=plans.ask_again,
            on_occupancy=self._changed,
            on_leases=on_leases,
        )

    def _listener_feed(
        self, plan: DeploymentPlan, plans: PlanSource, span_log: SpanLog | None, instance: str
    ) -> ListenerFeed:
        # What outside sources give is the flow's to limit; here the listener is the ingress.
        limit = min((rate for rate in (self._step.rate_limit, plan.rate_limit) if rate), default=0.0)
        return ListenerFeed(
            plan,
            self._step,
            self.outbox,
            self.counters,
            self._tasks,
            on_occupancy=self._changed,
            pace=self._pace(limit, plans),
            timers=self._timers,
            traces=StimulusTraces(span_log, "listener", lambda flow: step_site(plan, self._step, instance)),
            rules=self._rules,
            attached=self._attached,
        )

    def _pace(self, rate_limit: float, plans: PlanSource) -> Pace | None:
        if not rate_limit:
            return None
        name = self._step.name

        def replicas() -> int:
            return plans.state.replicas.get(name, 1) if plans.state is not None else 1

        return Pace(rate_limit, replicas, self._timers.later, time.monotonic)

    def _doubtful(
        self, plan: DeploymentPlan, plans: PlanSource, broker_since: Callable[[], float], delivery: Delivery
    ) -> bool:
        return in_doubt(
            attempt=delivery.attempt,
            stored_at=delivery.stored_at_unix_ns / 1e9,
            started_at=self._started_at,
            broker_since=broker_since(),
            replicas=plans.state.replicas.get(self._step.name, 1) if plans.state is not None else 1,
            now=time.time(),
            window_s=plan.duplicate_window_s,
        )

    @property
    def held(self) -> int:
        """Messages held, and a listener's unresolved emits."""
        return self._path.held + (self._listener.unresolved if self._listener is not None else 0)

    def _holding(self) -> tuple[int, int]:
        return self.held, self._path.oldest_unix_ns

    @property
    def held_back(self) -> int:
        """Of what is held: what failed for good, and what cannot go on before it."""
        return self._path.held_back

    @property
    def prefetch(self) -> int:
        """Messages that may be in work at once."""
        return self._step.prefetch

    def inputs(self) -> list[HeldInput]:
        """Messages held, as they are now."""
        return self._path.inputs()

    def blocked(self) -> list[Blocked]:
        """Edges that outputs wait for."""
        return self.outbox.blocked() + self._path.blocked()

    @property
    def last_input_at(self) -> float:
        """When messages came, or a listener emitted, last; CLOCK_MONOTONIC, 0 when that never happened."""
        return max(self._path.last_input_at, self._listener.last_emit_at if self._listener is not None else 0.0)

    @property
    def drained(self) -> bool:
        empty = not self._path.held and self.outbox.unsettled == 0
        return self._leaving is None and empty and (self._listener is None or self._listener.closed)

    @property
    def problem(self) -> str:
        """Why nothing comes from the broker; empty while all is well."""
        return self._path.problem

    @property
    def problem_reason(self) -> str:
        """Upper-case reason of the problem."""
        lost = self._slots is not None and self._slots.lost_a_slot
        return "SLOT_LOST" if lost else "NOTHING_DELIVERED"

    @property
    def leases(self) -> list[SlotLease]:
        """Of a keyed step: the slots it pulls from, or still holds something of."""
        return self._slots.leases if self._slots is not None else []

    def own(self, leases: Iterable[SlotLease]) -> None:
        """All slots that this instance owns now; a plain step has none."""
        if self._slots is not None:
            self._slots.own(list(leases))

    def _changed(self) -> None:
        self._emptied.set()
        self._on_occupancy()

    def component_ready(self, process: ComponentProcess, stream: ComponentStream) -> None:
        self.loop.component_ready(stream)
        if process.carries_bytes:
            self._transfers.component_ready(process.transfer())
        if self._listener is not None:
            self._listener.component_ready(process)

    def component_lost(self, cause: str) -> bool:
        """True when one message is to blame: a suspect that ran alone."""
        self._transfers.component_lost()
        if self._listener is not None:
            self._listener.component_lost()
        return self.loop.component_lost(cause)

    def activate(self) -> None:
        """Starts to pull, or to listen."""
        self._active = True
        if self._gave_way:
            return
        if self._listener is not None:
            self._listener.activate()
        else:
            self._path.start_pulling()

    def drain(self) -> None:
        """A listener stops reading its source; a puller goes on."""
        if self._listener is not None:
            self._listener.drain()

    def give_way(self) -> None:
        """Pulls no more, now or later; what is held is finished."""
        if self._gave_way:
            return
        self._gave_way = True
        if self._listener is not None:
            self._listener.drain()
        if self._active:
            self._leaving = self._tasks.create_task(self._stop_pulling(), name="give way")

    async def _stop_pulling(self) -> None:
        await self._path.stop_pulling()  # bounded by the lane
        self._leaving = None
        self._changed()

    async def finish(self, grace_s: float) -> None:
        """Stops pulling, waits until nothing is held or the grace is over; what is left is redelivered."""
        deadline = time.monotonic() + grace_s
        if self._listener is not None:
            self._listener.drain()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_PULLING_LIMIT_S):
                await self._path.stop_pulling()
        while not self.drained and (left_s := deadline - time.monotonic()) > 0:
            self._emptied.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._emptied.wait()
        if self.held:
            log.warning("given back to the broker", held=self.held)
        self.loop.close()
        self._transfers.close()
        self._path.close()
        self._timers.close()
        if self._rules is not None:
            self._rules.close()
        if self._listener is not None:
            await self._listener.close()
        self._flusher.cancel()


def _grouping(lane: JetStreamLane, plan: DeploymentPlan, step: StepPlan) -> JetStreamLane:
    """The lane where the broker syncs every write. What the entry's consumers deliver may be parked ones, too."""
    owner = subjects.deployment_owner(plan.deployment)

    def own_subject(consumer: str) -> str:
        found = subjects.parse_slot_consumer(consumer)
        slot = found.slot if found is not None else subjects.SINGLE_SLOT
        return subjects.data_subject(plan.workspace, plan.flow, owner, step.name, slot)

    prefix = subjects.flow_prefix(plan.workspace, plan.flow)
    return GroupingLane(lane, prefix, own_subject, only=step.name != plan.entry)  # type: ignore[return-value]
