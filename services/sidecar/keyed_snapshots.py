"""The snapshots of one slot of a keyed step, one per key: each is stored in the batch that commits its input.

So state, outputs and the mark that the input is done are stored together or not at all. Who owns the slot alone writes
them: they are read once, when the slot is taken or a key is first met, and known from then on.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import msgspec

from headrace.edge.structured_log import get_logger
from headrace.model import subjects
from headrace.model.step_snapshot import (
    ANY,
    SnapshotError,
    StepSnapshot,
    decode_snapshot,
    encode_snapshot,
    saved,
    snapshot_number,
)
from headrace.ports import JetStreamLane, Kept, ReadFailed
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.retry_delay import republish_delay_s
from services.sidecar.domain.snapshot_problems import NEEDS_KEY, problem_of
from services.sidecar.held_input import HeldInput

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan

log = get_logger(__name__)

CACHE_BYTES = 8 * 1024 * 1024


class KeyedSnapshots:
    """A key's state may be forgotten only while nothing of it waits to be stored (`_open`)."""

    def __init__(self, plan: DeploymentPlan, step: StepPlan, lane: JetStreamLane) -> None:
        self._lane = lane
        self._place = (plan.workspace, plan.flow, step.name)
        self._stream = subjects.flow_stream(plan.workspace, plan.flow)
        self._author: dict[str, Any] = {"deployment": plan.deployment, "version": plan.version, "code": step.pin.digest}
        self._has_key = bool(step.key)
        self._any = False
        self._marked = False
        self._known: OrderedDict[str, StepSnapshot] = OrderedDict()
        self._bytes = 0
        self._open: dict[str, int] = {}

    async def open(self) -> None:
        """Whether the step keeps anything at all: most do not, and then no key is ever asked for."""
        if self._has_key:
            self._any = self._marked = await self._read(ANY) is not None

    def is_known(self, key: str) -> bool:
        """Whether its messages may be called."""
        return not self._any or key in self._known or not self._has_key

    async def load(self, key: str) -> None:
        """Reads the state of a key."""
        kept = await self._read(snapshot_number(key))
        state = StepSnapshot(key=key)
        if kept is not None:
            try:
                state = decode_snapshot(kept.payload)
            except ValueError as error:
                log.error("snapshot unreadable, it begins anew", key=key, error=str(error))
        if key not in self._known:
            self._keep(key, state)

    def state_of(self, key: str) -> StepSnapshot:
        """As it is for the next call of the key, stored or about to be."""
        return self._known.get(key) or StepSnapshot(key=key)

    def save(self, held: HeldInput) -> Problem | None:
        """Takes what its call saved, and notes with the input what is to be stored with it."""
        if not self._has_key:
            return NEEDS_KEY
        before = self.state_of(held.key)
        try:
            after = saved(before, held.saves)
        except SnapshotError as error:
            return problem_of(error)
        signed = msgspec.structs.replace(after, message_id=held.message_id, at_unix_ns=time.time_ns(), **self._author)
        held.snapshot_before = before
        held.snapshots = [(subjects.snapshot_subject(*self._place, snapshot_number(held.key)), encode_snapshot(signed))]
        if not self._marked:
            self._marked = self._any = True
            held.snapshots.append((subjects.snapshot_subject(*self._place, ANY), b"{}"))
        self._open[held.key] = self._open.get(held.key, 0) + 1
        self._keep(held.key, signed)
        return None

    def take_back(self, held: HeldInput) -> None:
        """The input is given up after all; it is the newest of its key."""
        if held.snapshots:
            self._keep(held.key, held.snapshot_before)
            self._marked = self._marked and len(held.snapshots) == 1
            self.stored(held)

    def stored(self, held: HeldInput) -> None:
        """What was noted with the input is stored."""
        if held.snapshots:
            held.snapshots = []
            left = self._open.get(held.key, 1) - 1
            self._open[held.key] = left
            if left <= 0:
                del self._open[held.key]

    def _keep(self, key: str, state: StepSnapshot) -> None:
        before = self._known.pop(key, None)
        self._bytes += len(bytes(state.value)) + 512 - (len(bytes(before.value)) + 512 if before is not None else 0)
        self._known[key] = state
        while self._bytes > CACHE_BYTES and self._any:
            oldest = next((name for name in self._known if name not in self._open and name != key), None)
            if oldest is None:
                return
            self._bytes -= len(bytes(self._known.pop(oldest).value)) + 512

    async def _read(self, number: int) -> Kept | None:
        tries = 0
        while True:
            try:
                return await self._lane.last_message(self._stream, subjects.snapshot_subject(*self._place, number))
            except ReadFailed:
                tries += 1
                await asyncio.sleep(republish_delay_s(tries))
