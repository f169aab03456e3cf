"""Stores what waits for a deployment elsewhere: in the dead-letter stream, or with the deployment that runs.

Safe against kill -9 at any point. Each batch: claim it (compare-and-set of the deployment's state), store each
message under an id that follows from message and choice, note how far it came and what was counted, and only then
delete what is noted. After a kill the claimed part is stored again under the same ids, which the broker refuses
while it remembers them; a claim older than that is in doubt, and goes to the dead letters marked so.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import msgspec

from headrace.edge.jetstream_assets import EDGE_FULL, JetStreamApiError, JetStreamAssets, NoResponders, StoredMessage
from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.deployment import DeploymentPlan, DeploymentState, DrainDecision, StepPlan
from headrace.model.errors import Conflict, Unavailable
from headrace.model.message_ids import moved_message_id, unreadable_id
from headrace.wire.dead_letter import LetterDesk, failed_attempt
from headrace.wire.envelope import Envelope, MalformedMessage, decode_envelope
from services.orchestrator.domain.drain_choice import MOVE
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.sent_again import sent_again, slot_at
from services.orchestrator.stores import CAS_PAUSES_S, Stores, keeps_changing

log = get_logger(__name__)

BATCH = 100
# Less than the duplicate window (120 s) of both streams, by the longest time a batch takes.
REMEMBERED_S = 90.0
FULL_PAUSE_S = 0.05
REASON = "DRAIN_LIMIT"
REASON_IN_DOUBT = "DRAIN_LIMIT_IN_DOUBT"
REASON_NO_STEP = "DRAIN_LIMIT_NO_SUCH_STEP"


class _Full(Exception):
    """The receiving edge takes no more now."""


@dataclass(slots=True)
class _Progress:
    through: int
    dead_lettered: int = 0
    moved: int = 0


class MessageSettler:
    """One batch per call; the planner asks for the next while something is left."""

    def __init__(self, stores: Stores, assets: JetStreamAssets) -> None:
        self._stores = stores
        self._assets = assets

    async def settle(self, snapshot: Snapshot, number: int) -> None:
        """Nothing may work on the deployment's messages, and its owner must be out of the stream."""
        view = snapshot.deployments[number]
        state, plan = view.state, view.plan
        if state is None or plan is None or state.drain is None:
            raise Conflict("the choice is not there any more")
        stream = subjects.flow_stream(snapshot.workspace, snapshot.flow.flow)
        batch = await self._read(stream, snapshot, plan)
        behind = [message for message in batch if message.sequence <= state.drain.through]
        if behind:  # noted as stored elsewhere; the kill came before they were deleted
            await self._delete(stream, behind)
            return
        if not batch:
            return
        doubtful = doubtful_through(state.drain, snapshot.now)
        claim = msgspec.structs.replace(
            state.drain, claimed=max(batch[-1].sequence, state.drain.claimed), claimed_at=snapshot.now
        )
        claimed = msgspec.structs.replace(state, drain=claim)
        await self._stores.write_state(snapshot.flow.flow, number, claimed, view.state_revision)
        progress = _Progress(state.drain.through)
        try:
            for message in batch:
                await self._store(snapshot, plan, claim, message, progress, in_doubt=message.sequence <= doubtful)
        except _Full:
            await asyncio.sleep(FULL_PAUSE_S)
        finally:
            if progress.through > state.drain.through:
                await self._note(snapshot.flow.flow, number, claim.operation, progress)
        await self._delete(stream, [message for message in batch if message.sequence <= progress.through])
        log.info(
            "messages of a drained-out deployment stored elsewhere",
            flow=snapshot.flow.flow,
            deployment=number,
            choice=claim.choice,
            dead_lettered=progress.dead_lettered,
            moved=progress.moved,
        )

    async def _read(self, stream: str, snapshot: Snapshot, plan: DeploymentPlan) -> list[StoredMessage]:
        """The oldest messages of the deployment, what was parked for it included, by sequence."""
        owners = [subjects.deployment_owner(plan.deployment)]
        if plan.parking_epoch:
            owners.append(subjects.parking_owner(plan.parking_epoch))
        filters = [subjects.owner_filter(snapshot.workspace, plan.flow, owner) for owner in owners]
        found: list[StoredMessage] = []
        for subject_filter in filters:
            sequence, count = 1, 0
            while count < BATCH:
                message = await self._assets.next_message(stream, subject_filter, sequence)
                if message is None:
                    break
                found.append(message)
                sequence, count = message.sequence + 1, count + 1
        return sorted(found, key=lambda message: message.sequence)[:BATCH]

    async def _store(
        self,
        snapshot: Snapshot,
        plan: DeploymentPlan,
        drain: DrainDecision,
        message: StoredMessage,
        progress: _Progress,
        *,
        in_doubt: bool,
    ) -> None:
        step = subjects.parse_data_subject(message.subject).step
        if step.startswith("_"):  # a barrier that a killed orchestrator left
            progress.through = message.sequence
            return
        envelope = _envelope(message, step)
        active = snapshot.deployments.get(snapshot.flow.active)
        receiver = active.plan if active is not None else None
        known = receiver is not None and any(item.name == step for item in receiver.steps)
        if drain.choice == MOVE and known and envelope is not None and not in_doubt:
            assert receiver is not None
            await self._move(snapshot, plan, drain, envelope, message, receiver.step(step))
            progress.moved += 1
        else:
            reason = REASON_IN_DOUBT if in_doubt else REASON
            if drain.choice == MOVE and not known and not in_doubt:
                reason = REASON_NO_STEP
            await self._dead_letter(plan, drain, envelope, message, step, reason)
            progress.dead_lettered += 1
        progress.through = message.sequence

    async def _move(
        self,
        snapshot: Snapshot,
        plan: DeploymentPlan,
        drain: DrainDecision,
        envelope: Envelope,
        message: StoredMessage,
        receiver: StepPlan,
    ) -> None:
        """To the same step of the deployment that runs, and the slot of its key; by its own subject, so that it
        cannot go to another one."""
        own_id = moved_message_id(envelope.id, receiver.name, drain.incarnation)
        moved = sent_again(envelope, own_id, drain.incarnation, time.time_ns())
        moved.moved.deployment, moved.moved.id = plan.deployment, envelope.id
        moved.moved.at_unix_ns = int(drain.decided_at * 1e9)
        owner = subjects.deployment_owner(snapshot.flow.active)
        slot = slot_at(moved, receiver.key, receiver.slots)
        subject = subjects.data_subject(snapshot.workspace, plan.flow, owner, receiver.name, slot)
        headers = {"Nats-Msg-Id": moved.id}
        if traceparent := message.headers.get("traceparent"):
            headers["traceparent"] = traceparent
        try:
            await self._assets.publish(subject, moved.SerializeToString(), headers)
        except JetStreamApiError as error:
            if error.code == EDGE_FULL:
                raise _Full from error
            raise Unavailable(f"the broker refused a moved message: {error}") from error
        except NoResponders as error:
            raise Unavailable(f"deployment {snapshot.flow.active} takes no messages any more") from error

    async def _dead_letter(
        self,
        plan: DeploymentPlan,
        drain: DrainDecision,
        envelope: Envelope | None,
        message: StoredMessage,
        step: str,
        reason: str,
    ) -> None:
        own_id = unreadable_id(message.headers.get("Nats-Msg-Id", ""), message.sequence, step)
        original = envelope if envelope is not None else Envelope(id=own_id, body=message.data)
        why = f"deployment {plan.deployment} drained for too long: {drain.choice} was chosen"
        now_ns = time.time_ns()
        letter = LetterDesk.of_plan(plan).letter(
            original,
            step,
            reason,
            [failed_attempt(0, reason, why, now_ns)],
            now_ns,
            traceparent=message.headers.get("traceparent", ""),
            unreadable=envelope is None,
        )
        try:
            await self._assets.publish(letter.subject, letter.payload, {"Nats-Msg-Id": letter.message_id})
        except (JetStreamApiError, NoResponders) as error:
            raise Unavailable(
                f"the dead-letter stream takes no more: {error!r}", next_step="Make room in it; it is tried on"
            ) from error

    async def _note(self, flow: str, number: int, operation: str, progress: _Progress) -> None:
        """What is stored elsewhere, before it is deleted here; whoever wrote the state meanwhile."""
        for pause_s in CAS_PAUSES_S:
            found = await self._stores.state(flow, number)
            if found is None or found[0].drain is None or found[0].drain.operation != operation:
                raise Conflict("the choice was changed while it was carried out")
            state, revision = found
            try:
                await self._stores.write_state(flow, number, _noted(state, progress), revision)
            except Conflict:
                await asyncio.sleep(pause_s)
                continue
            return
        raise keeps_changing(f"deployment {number} of flow {flow!r}")

    async def _delete(self, stream: str, messages: list[StoredMessage]) -> None:
        await asyncio.gather(*(self._assets.delete_message(stream, message.sequence) for message in messages))


def _noted(state: DeploymentState, progress: _Progress) -> DeploymentState:
    assert state.drain is not None
    drain = msgspec.structs.replace(
        state.drain,
        through=max(progress.through, state.drain.through),
        dead_lettered=state.drain.dead_lettered + progress.dead_lettered,
        moved=state.drain.moved + progress.moved,
    )
    return msgspec.structs.replace(state, drain=drain)


def doubtful_through(drain: DrainDecision, now: float) -> int:
    """Up to which sequence it is not known whether a message was stored elsewhere: 0 while the broker knows."""
    return drain.claimed if drain.claimed > drain.through and now - drain.claimed_at > REMEMBERED_S else 0


def _envelope(message: StoredMessage, step: str) -> Envelope | None:
    try:
        return decode_envelope(message.data)
    except MalformedMessage as error:
        log.warning("a waiting message cannot be read", step=step, sequence=message.sequence, error=error.message)
        return None
