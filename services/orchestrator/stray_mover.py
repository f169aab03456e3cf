"""Moves messages that lie where nobody reads: stimuli to where they belong now, the rest dead.

A stimulus (a message without a parent) has met no code yet, so it goes to the trigger that the flow has now: to the
ingress, or where that is closed to the next start's parking epoch, under an id of its own that follows from the
first: moved twice it is stored once. Any other message was made by code of a deployment that is over, or for a step
that its deployment does not have; nobody else may go on with it.
"""

from __future__ import annotations

import time

import msgspec

from headrace.edge.assets_transport import AssetsTransport
from headrace.edge.ingress_publisher import IngressPublisher
from headrace.edge.jetstream_assets import JetStreamAssets, StoredMessage
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.errors import Unavailable
from headrace.model.message_ids import moved_message_id, unreadable_id
from headrace.model.names import is_number
from headrace.ports import LaneFull, PublishRefused, PublishUnknown, ReadFailed
from headrace.wire.dead_letter import LetterDesk, failed_attempt
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope
from services.orchestrator.domain.actions import MoveStrays
from services.orchestrator.domain.assets import NO_SLOT
from services.orchestrator.domain.documents import current_epoch
from services.orchestrator.domain.drain_choice import DEAD_LETTER
from services.orchestrator.domain.history import noted
from services.orchestrator.domain.parked_choice import is_given_up
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.sent_again import sent_again, slot_at
from services.orchestrator.stores import Stores

log = get_logger(__name__)

BATCH = 200
REASON = "STRAY"
REASON_GIVEN_UP = "PARKED_GIVEN_UP"


class StrayMover:
    """One batch per call; the planner asks again while something is left."""

    def __init__(self, stores: Stores, assets: JetStreamAssets) -> None:
        self._stores = stores
        self._assets = assets
        self._transport = AssetsTransport(assets)
        self._ingress = IngressPublisher(self._transport, stores.workspace)

    async def move(self, snapshot: Snapshot, action: MoveStrays) -> None:
        """Store elsewhere, count, delete: a kill in between repeats it under the same ids."""
        flow, workspace = snapshot.flow, snapshot.workspace
        stream = subjects.flow_stream(workspace, flow.flow)
        batch: list[StoredMessage] = []
        for owner, step, slot in action.places:
            pattern, sequence = subjects.data_subject(workspace, flow.flow, owner, step, slot), 1
            if slot == NO_SLOT:
                pattern = subjects.all_slots(workspace, flow.flow, owner, step)
            while len(batch) < BATCH:
                message = await self._assets.next_message(stream, pattern, sequence)
                if message is None:
                    break
                sequence = message.sequence + 1
                if slot != NO_SLOT or _slot_of(message) == NO_SLOT:
                    batch.append(message)
        for message in batch:
            await self._store(snapshot, message)
        chosen = sum(is_given_up(flow, _owner_of(message)) for message in batch)
        counted = msgspec.structs.replace(
            flow,
            strays_moved=flow.strays_moved + len(batch) - chosen,
            given_up=msgspec.structs.replace(flow.given_up, dead_lettered=flow.given_up.dead_lettered + chosen),
        )
        await self._stores.write_flow(
            noted(flow, counted, "orchestrator", snapshot.now, snapshot.deployments), snapshot.flow_revision
        )
        for message in batch:
            await self._assets.delete_message(stream, message.sequence)
        if chosen:
            log.info("parked messages were dead-lettered by choice", flow=flow.flow, n=chosen)
        if chosen < len(batch):
            log.error("messages that nobody reads were moved", flow=flow.flow, places=action.places[:5], n=len(batch))

    async def _store(self, snapshot: Snapshot, message: StoredMessage) -> None:
        trigger = snapshot.wanted_route.trigger
        owner, step = message.subject.split(".")[3:5]
        try:
            envelope: Envelope | None = decode_envelope(message.data)
        except MalformedMessage:
            envelope = None
        if is_given_up(snapshot.flow, owner):
            number = snapshot.flow.given_up.deployment
            why = f"parked for deployment {number}, which failed: {DEAD_LETTER} was chosen"
            await self._dead_letter(snapshot, message, number, step, envelope, REASON_GIVEN_UP, why)
            return
        if envelope is None or envelope.parent_id or not trigger:
            why = f"stored under {owner} for {step}, where nobody reads"
            await self._dead_letter(snapshot, message, _deployment_of(owner), step, envelope, REASON, why)
            return
        flow, workspace = snapshot.flow, snapshot.workspace
        incarnation, now_ns = envelope.incarnation + 1, time.time_ns()
        moved = sent_again(envelope, moved_message_id(envelope.id, trigger, incarnation), incarnation, now_ns)
        moved.moved.id, moved.moved.at_unix_ns = envelope.id, now_ns
        moved.moved.deployment = _deployment_of(owner)
        route = snapshot.wanted_route
        slot = slot_at(moved, route.key, route.slots)
        payload, traceparent = moved.SerializeToString(), message.headers.get("traceparent", "")
        if not flow.ingress:
            parked = subjects.parking_owner(current_epoch(flow))
            subject = subjects.data_subject(workspace, flow.flow, parked, trigger, slot)
            await self._publish(subject, payload, moved.id, traceparent)
            return
        try:
            await self._ingress.publish(
                flow.flow,
                trigger,
                slot,
                payload,
                fenced=snapshot.fenced,
                message_id=moved.id,
                traceparent=traceparent,
            )
        except (PublishRefused, PublishUnknown, LaneFull, ReadFailed) as error:
            raise Unavailable(f"a stray message cannot be moved to the ingress: {error}") from error

    async def _dead_letter(
        self,
        snapshot: Snapshot,
        message: StoredMessage,
        number: int,
        step: str,
        envelope: Envelope | None,
        reason: str,
        why: str,
    ) -> None:
        own_id = unreadable_id(message.headers.get("Nats-Msg-Id", ""), message.sequence, step)
        original = envelope if envelope is not None else Envelope(id=own_id, body=message.data)
        view = snapshot.deployments.get(number)
        if view is not None and view.plan is not None:
            desk = LetterDesk.of_plan(view.plan)
        else:
            desk = LetterDesk.without_plan(snapshot.workspace, snapshot.flow.flow, number)
        now_ns = time.time_ns()
        letter = desk.letter(
            original,
            step,
            reason,
            [failed_attempt(0, reason, why, now_ns)],
            now_ns,
            traceparent=message.headers.get("traceparent", ""),
            unreadable=envelope is None,
        )
        await self._publish(letter.subject, letter.payload, letter.message_id)

    async def _publish(self, subject: str, payload: bytes, message_id: str, traceparent: str = "") -> None:
        try:
            await self._transport.publish(subject, payload, message_id=message_id, traceparent=traceparent)
        except (PublishRefused, PublishUnknown) as error:
            raise Unavailable(f"a stray message cannot be moved to {subject}: {error}") from error


def _owner_of(message: StoredMessage) -> str:
    return message.subject.split(".")[3]


def _slot_of(message: StoredMessage) -> int:
    slot = message.subject.rpartition(".")[2]
    return int(slot) if is_number(slot) else NO_SLOT


def _deployment_of(owner: str) -> int:
    """0 for an owner that is no deployment."""
    return int(owner[1:]) if owner[:1] == "d" and is_number(owner[1:]) else 0
