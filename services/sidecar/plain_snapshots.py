"""The snapshot of a plain step: read before its first call, stored after a call's outputs and before its message is
done.

Calls run side by side, so what they save is put in the order in which they ended, and stored in that order: a save is
stored once the outputs of its call and of all before it are. The stored snapshot names the messages it was saved for,
so that one of them that is delivered again (its process died before the acknowledgement) is only acknowledged.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.step_snapshot import (
    PLAIN,
    Save,
    SnapshotError,
    StepSnapshot,
    decode_snapshot,
    encode_snapshot,
    noted,
    saved,
)
from headrace.ports import BatchMessage, JetStreamLane, LaneFull, PublishRefused, PublishUnknown, ReadFailed, Stored
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.retry_delay import republish_delay_s
from services.sidecar.domain.snapshot_problems import problem_of
from services.sidecar.held_input import HeldInput

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from services.sidecar.timers import Timers

log = get_logger(__name__)

MOST_AT_ONCE = 100


class _Ticket:
    """What one call saves, in its turn. `then` is set once its outputs are stored."""

    __slots__ = ("failed", "message_id", "saves", "then")

    def __init__(self, message_id: str, saves: list[Save]) -> None:
        self.message_id, self.saves = message_id, saves
        self.then: Callable[[], None] | None = None
        self.failed: Callable[[Problem], None] | None = None


class PlainSnapshots:
    """Bounded by the inputs that are held: each has one ticket at most."""

    def __init__(
        self, plan: DeploymentPlan, step: StepPlan, lane: JetStreamLane, timers: Timers, counters: dict[str, int]
    ) -> None:
        self._lane, self._timers, self._counters = lane, timers, counters
        self._stream = subjects.flow_stream(plan.workspace, plan.flow)
        self._subject = subjects.snapshot_subject(plan.workspace, plan.flow, step.name, PLAIN)
        self._author: dict[str, Any] = {"deployment": plan.deployment, "version": plan.version, "code": step.pin.digest}
        self._stored = self.latest = StepSnapshot()
        self.applied: frozenset[str] = frozenset()
        """Messages that are done but for their acknowledgements: their outputs were stored before their saves were."""
        self._sequence = 0
        self._tickets: dict[str, _Ticket] = {}
        self._task: asyncio.Task[None] | None = None
        self._busy = False
        self._tries = 0
        self.ready = False

    def open(self, then: Callable[[], None]) -> None:
        """Reads it; `then` is called once it is known."""

        async def read() -> None:
            await self._read()
            self.ready = True
            then()

        self._task = asyncio.get_running_loop().create_task(read(), name="snapshot")

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def was_saved_for(self, message_id: str) -> bool:
        """The message is done but for its acknowledgement: its outputs were stored before its save was."""
        return message_id in self.applied

    def save(self, held: HeldInput) -> Problem | None:
        """Takes what its call saved, in its turn; or says why it cannot be."""
        try:
            after = saved(self.latest, held.saves)
        except SnapshotError as error:
            return problem_of(error)
        self.latest = after
        self._tickets[held.message_id] = _Ticket(held.message_id, held.saves)
        return None

    def outputs_stored(self, held: HeldInput, then: Callable[[], None], failed: Callable[[Problem], None]) -> None:
        """Stores its save; `failed` when another replica has saved what it must not overwrite."""
        ticket = self._tickets[held.message_id]
        ticket.then, ticket.failed = then, failed
        self._store()

    def drop(self, held: HeldInput) -> None:
        """Its message is given up: nothing is saved for it."""
        if self._tickets.pop(held.message_id, None) is not None:
            self._refold()

    def _refold(self) -> None:
        """What the state will be: what is stored, and the tickets on top that fit it."""
        state = self._stored
        for ticket in self._tickets.values():
            try:
                state = saved(state, ticket.saves)
            except SnapshotError:
                continue  # it is told when its turn comes
        self.latest = state
        if not self._busy:
            self._store()

    def _store(self) -> None:
        if self._busy:
            return
        batch: list[_Ticket] = []
        state = self._stored
        for ticket in list(self._tickets.values())[:MOST_AT_ONCE]:
            if ticket.then is None:
                break
            try:
                state = noted(saved(state, ticket.saves), message_id=ticket.message_id)
            except SnapshotError as error:
                del self._tickets[ticket.message_id]
                assert ticket.failed is not None
                ticket.failed(problem_of(error))
                continue
            batch.append(ticket)
        if batch:
            self._publish(_signed(state, self._author), batch)

    def _publish(self, state: StepSnapshot, batch: list[_Ticket]) -> None:
        self._busy = True
        message = BatchMessage(self._subject, encode_snapshot(state), rollup=True, expected_last=self._sequence)
        try:
            future = self._lane.publish_batch([message])
        except LaneFull:
            self._again()
            return
        future.add_done_callback(partial(self._answered, state, batch))

    def _answered(self, state: StepSnapshot, batch: list[_Ticket], future: asyncio.Future[Stored]) -> None:
        error = None if future.cancelled() else future.exception()
        if not future.cancelled() and error is None:
            self._saved(state, future.result().sequence, batch)
        elif isinstance(error, PublishRefused) and error.fenced:
            self._task = asyncio.get_running_loop().create_task(self._look(batch), name="snapshot")
        else:
            if error is not None and not isinstance(error, PublishUnknown):
                log.warning("a snapshot is not stored yet", subject=self._subject, error=str(error), tries=self._tries)
            self._again()

    def _saved(self, state: StepSnapshot, sequence: int, batch: list[_Ticket]) -> None:
        self._stored, self._sequence, self._tries, self._busy = state, sequence, 0, False
        self.applied = frozenset(state.applied)
        self._counters["snapshots"] += len(batch)
        for ticket in batch:
            del self._tickets[ticket.message_id]
        for ticket in batch:
            assert ticket.then is not None
            ticket.then()
        self._refold()

    def _again(self) -> None:
        self._tries += 1

        def free() -> None:
            self._busy = False
            self._store()

        self._timers.later(republish_delay_s(self._tries), free)

    async def _look(self, batch: list[_Ticket]) -> None:
        """Somebody stored it: an earlier try of ours whose answer was lost, or another replica."""
        await self._read()
        if all(self.was_saved_for(ticket.message_id) for ticket in batch):
            self._saved(self._stored, self._sequence, batch)
            return
        self._busy = False
        self._refold()

    async def _read(self) -> None:
        tries = 0
        while True:
            try:
                last = await self._lane.last_message(self._stream, self._subject)
                break
            except ReadFailed:
                tries += 1
                await asyncio.sleep(republish_delay_s(tries))
        self._stored, self._sequence = StepSnapshot(), last.sequence if last is not None else 0
        if last is not None:
            try:
                self._stored = decode_snapshot(last.payload)
            except ValueError as error:
                log.error("snapshot unreadable, it begins anew", subject=self._subject, error=str(error))
        self.applied = frozenset(self._stored.applied)
        if not self._tickets:
            self.latest = self._stored


def _signed(state: StepSnapshot, author: dict[str, Any]) -> StepSnapshot:
    return msgspec.structs.replace(state, at_unix_ns=time.time_ns(), **author)
