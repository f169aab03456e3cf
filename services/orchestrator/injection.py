"""A person's message to a flow: one stimulus, published to the ingress like a webhook's."""

from __future__ import annotations

import asyncio
import math
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.api.attachment.v1.attachment_pb2 import Attachment
from headrace.api.message.v1 import message_pb2
from headrace.edge.attachment_store import AttachmentAccess
from headrace.edge.jetstream_assets import JetStreamAssets
from headrace.edge.stimulus_traces import StimulusTraces
from headrace.model.attachments import MAX_ATTACHMENTS
from headrace.model.cron import CronSchedule
from headrace.model.errors import Exhausted, HeadraceError, InvalidInput, Unavailable, WrongState
from headrace.model.flow_graph import find_entry, find_trigger
from headrace.model.flow_rates import FlowRates
from headrace.model.flow_spec import StepSpec
from headrace.model.ingress_owner import is_fenced
from headrace.model.json_values import check_json_body
from headrace.model.message_ids import execution_id, first_message_id, stimulus_id
from headrace.model.rates import format_rate
from headrace.model.slots import Keying, keying
from headrace.model.trace_context import bounded_baggage
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored
from services.orchestrator.attachment_references import kept_for_message
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.flow_states import FlowState, wrong_state
from services.orchestrator.domain.suspension import check_accepts
from services.orchestrator.domain.tick_body import tick_body
from services.orchestrator.domain.tick_plan import TimerSpec
from services.orchestrator.ingress_lane import IngressLane
from services.orchestrator.shared_read import SharedReads
from services.orchestrator.snapshot_reader import SnapshotReader
from services.orchestrator.stores import Stores
from services.orchestrator.wall_clock import WallClock

MAX_BODY_BYTES = 512 * 1024
BULK_CALLS = 3
"""In work at once; more wait for their turn. So many fit in the lane, with room for single messages."""


NotStored = PublishRefused | PublishUnknown | LaneFull | ReadFailed


@dataclass(frozen=True, slots=True)
class Entrance:
    """Where messages to a flow go, as it was a moment ago."""

    document: FlowDocument
    entry: StepSpec
    keying: Keying
    rate_limit: float
    fenced: bool
    together: bool


def check_body(body: bytes, content_type: str, attachments: Sequence[Attachment]) -> None:
    if len(body) > MAX_BODY_BYTES:
        raise InvalidInput.at(
            "body",
            f"{len(body)} bytes",
            f"is more than {MAX_BODY_BYTES} bytes",
            reason="BODY_TOO_LARGE",
            next_step="Upload it (UploadAttachment; headrace inject --file does it) and send its reference",
        )
    bodies = sum(item.is_body for item in attachments)
    if len(attachments) > MAX_ATTACHMENTS or bodies > 1 or (bodies and body):
        raise InvalidInput.at(
            "attachments",
            len(attachments),
            f"are more than {MAX_ATTACHMENTS}, or more than one of them (or the body besides) is the body",
            reason="BAD_ATTACHMENTS",
        )
    if not bodies:
        check_json_body("body", content_type or "application/json", body)


class Injector:
    """Any orchestrator may publish: the broker refuses a repeated id and decides which deployment gets it."""

    def __init__(
        self,
        stores: Stores,
        assets: JetStreamAssets,
        reader: SnapshotReader,
        clock: WallClock,
        traces: StimulusTraces,
        attachments: AttachmentAccess,
        lane: IngressLane,
    ) -> None:
        self.traces = traces
        self.lane = lane
        self.attachments = attachments
        self._stores = stores
        self._flows = SharedReads(stores.existing_flow)
        self.bulk_places = asyncio.Semaphore(BULK_CALLS)
        self._assets = assets
        self._reader = reader
        self._clock = clock
        self._rates = FlowRates()

    async def inject(
        self,
        name: str,
        body: bytes,
        content_type: str,
        headers: dict[str, str],
        request_id: str,
        *,
        traceparent: str = "",
        baggage: str = "",
        attachments: Sequence[Attachment] = (),
    ) -> tuple[str, bool]:
        """Publishes one stimulus to the ingress; answers the execution id and whether it was known already.
        `traceparent` and `baggage` are the caller's."""
        check_body(body, content_type, attachments)
        entrance = await self.entrance(name)
        self.check_rate(entrance)
        stimulus = stimulus_id(name, "inject", request_id or uuid.uuid4().hex)
        execution = execution_id(stimulus)
        trace = self.traces.begin(f"inject {name}", name, execution=execution, stimulus=stimulus, given=traceparent)
        envelope = message_pb2.Envelope(
            id=first_message_id(stimulus, entrance.entry.name),
            execution_id=execution,
            origin=message_pb2.Origin.ORIGIN_INJECTED,
            baggage=bounded_baggage(baggage),
            body=body,
            content_type=content_type or "application/json",
            headers=headers,
            sent_at_unix_ns=self.now_unix_ns(),
            attachments=await self._kept(name, entrance.entry, attachments),
        )
        slot = entrance.keying.place(headers, body, envelope.id).slot
        try:
            stored = await self.publish(entrance.document, entrance.entry.name, slot, envelope, trace.traceparent)
        except HeadraceError as error:
            self.traces.end(trace, code=error.reason, problem=error.message)
            raise
        self.traces.end(trace, duplicate=stored.duplicate)
        return envelope.execution_id, stored.duplicate

    def now_unix_ns(self) -> int:
        return int(self._clock.now() * 1e9)

    async def entrance(self, name: str) -> Entrance:
        """Where messages to a flow go now; NotFound, or WrongState where it takes none."""
        document, _ = await self._flows.get(name)
        version = document.active_version or document.target_version
        if document.state in (FlowState.STOPPED, FlowState.STOPPING) or not version:
            raise wrong_state(name, document.state, "inject")
        check_accepts(document)
        if await self._reader.started_by_listener(document):
            raise WrongState(
                f"flow {name!r} is started by its listener: nothing can be injected",
                reason="STARTED_BY_LISTENER",
                next_step="Send it through the listener's source, or start a flow with a trigger",
            )
        spec = (await self._reader.version(name, version)).spec
        entry = find_entry(spec)
        fenced = is_fenced(self._assets.copies)
        together = not fenced and self._reader.group_commits()
        return Entrance(document, entry, keying(entry.key, entry.slot_count), spec.rate_limit, fenced, together)

    async def _kept(self, flow: str, entry: StepSpec, attachments: Sequence[Attachment]) -> list[Attachment]:
        """What the message names, complete; kept until it is stored."""
        if entry.key.startswith("body:") and any(item.is_body for item in attachments):
            raise InvalidInput.at(
                "attachments",
                "is_body",
                "cannot be the body where the flow takes its key from it",
                reason="KEY_IN_BODY",
            )
        return await kept_for_message(self.attachments, flow, attachments)

    async def run_now(self, name: str, request_id: str) -> tuple[str, bool]:
        """A tick at once, beside those that are due; answers as `inject`. WrongState where no timer starts the flow."""
        document, _ = await self._stores.existing_flow(name)
        version = document.active_version or document.target_version
        if not version:
            raise wrong_state(name, document.state, "run")
        spec = (await self._reader.version(name, version)).spec
        step = next(item for item in spec.steps if item.name == find_trigger(spec))
        if not (step.every_s or step.cron):
            raise WrongState(
                f"flow {name!r} has no timer: its trigger {step.name!r} waits for messages",
                reason="NOT_A_TIMER",
                next_step=f"Send it one: headrace inject {name} --body '{{}}'",
            )
        now_ns = int(self._clock.now() * 1000) * 1_000_000
        timer = TimerSpec(
            name,
            step.name,
            find_entry(spec).name,
            every_ns=round(step.every_s * 1e9),
            running_since_ns=0,
            active_since_ns=0,
            schedule=CronSchedule(step.cron, step.time_zone) if step.cron else None,
        )
        body = tick_body(now_ns, timer, run_now=True)
        return await self.inject(name, body, "application/json", {}, f"run-now:{request_id or uuid.uuid4().hex}")

    def check_rate(self, entrance: Entrance) -> None:
        """One more message of the flow; Exhausted past its rate."""
        name, rate = entrance.document.flow, entrance.rate_limit
        wait_s = self._rates.enter(name, rate, time.monotonic())
        if wait_s:
            raise Exhausted(
                f"flow {name!r} takes {format_rate(rate)} (rate_limit)",
                reason="RATE_LIMITED",
                next_step=f"Try again in {wait_s:.1f} s with the same request_id",
                metadata={"retry_after_ms": str(math.ceil(wait_s * 1000))},
            )

    async def publish(
        self, document: FlowDocument, entry: str, slot: int, envelope: message_pb2.Envelope, traceparent: str
    ) -> Stored:
        """To the ingress of a flow; Exhausted where its first step is full, Unavailable where nobody knows whether it
        is stored, WrongState where the flow takes none."""
        fenced = is_fenced(self._assets.copies)
        try:
            return await (await self.lane.publisher()).publish(
                document.flow,
                entry,
                slot,
                envelope.SerializeToString(),
                fenced=fenced,
                together=not fenced and self._reader.group_commits(),
                message_id=envelope.id,
                traceparent=traceparent,
            )
        except (PublishRefused, PublishUnknown, LaneFull, ReadFailed) as error:
            raise await self.problem(document, error) from error

    async def problem(self, document: FlowDocument, error: NotStored) -> HeadraceError:
        """What a caller is told of a publish that failed, by what the flow is now."""
        name = document.flow
        if isinstance(error, PublishRefused):
            if not error.edge_full:
                return Unavailable(f"the broker refused the message: {error}")
            return Exhausted(
                f"the first step of flow {name!r} has as many messages waiting as it may",
                reason="EDGE_FULL",
                next_step="Try again in a second with the same request_id",
                metadata={"retry_after_ms": "1000"},
            )
        try:
            now, _ = await self._stores.existing_flow(name)
            if now.state in (FlowState.STOPPED, FlowState.STOPPING):
                return wrong_state(name, now.state, "inject")
            check_accepts(now)
        except HeadraceError as found:
            return found
        return Unavailable(
            f"flow {name!r} is {document.state}, but its ingress does not answer",
            reason="INGRESS_CLOSED",
            next_step="Try again with the same request_id",
        )
