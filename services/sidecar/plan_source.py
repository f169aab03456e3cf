"""The deployment's two documents: the plan (immutable, checked by digest, cached on disk) and its state.

The plan is read from the broker once and from the disk ever after; the state is watched, and read again when
something suggests that a change was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.credential import CredentialRef
from headrace.model.deployment import (
    WORKING_PHASES,
    DeploymentPhase,
    DeploymentPlan,
    DeploymentState,
    StepPlan,
    decode_plan,
    decode_state,
    plan_digest,
)
from headrace.model.errors import HeadraceError, NotFound, WrongState

if TYPE_CHECKING:
    from headrace.edge.kv_bucket import KvBucket
    from services.sidecar.settings import Settings

log = get_logger(__name__)

RESYNC_S = 30.0
# While the state stays as it is, it is read more and more seldom, down to this.
LONGEST_RESYNC_S = 240.0
REREAD_PAUSE_S = 1.0


class PlanSource:
    """Plan and state of this instance's deployment; `on_state` is called with each state that was read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        hexadecimal = settings.plan_digest.removeprefix("sha256:")
        self._file = settings.cache_dir / "plans" / f"{hexadecimal}.json"
        self._bucket: KvBucket | None = None
        self._state: DeploymentState | None = None
        self._asked = asyncio.Event()
        self.on_state: Callable[[DeploymentState], None] = lambda state: None

    @property
    def state(self) -> DeploymentState | None:
        return self._state

    @property
    def retired(self) -> bool:
        """The state says RETIRED; unknown is not retired."""
        return self._state is not None and self._state.phase is DeploymentPhase.RETIRED

    @property
    def goes_on_by_itself(self) -> bool:
        """Its deployment works, and still wants this replica to."""
        state = self._state
        if state is None or state.phase not in WORKING_PHASES:
            return False
        given_up = state.drain is not None and state.drain.choice in ("DEAD_LETTER", "MOVE")
        return not given_up and self._settings.replica < state.replicas.get(self._settings.step, 1)

    def is_only_replica(self, step: str) -> bool:
        """The deployment works, and this instance is its step's only one: whatever its consumer shows as held
        was held by a predecessor that is dead."""
        return self.goes_on_by_itself and self._state is not None and self._state.replicas.get(step) == 1

    def credential_of(self, step: StepPlan) -> CredentialRef | None:
        """The credential that the step has to use by what is known: the plan's, unless it was refreshed."""
        return self._state.credential_of(step) if self._state is not None else step.credential

    def connect(self, bucket: KvBucket) -> None:
        self._bucket = bucket

    @property
    def bucket(self) -> KvBucket:
        """Where the documents of deployments are; after `connect`."""
        assert self._bucket is not None
        return self._bucket

    def cached_plan(self) -> DeploymentPlan | None:
        """The plan from this machine's disk, if it is there and is the one named by the digest."""
        try:
            raw = self._file.read_bytes()
        except OSError:
            return None
        return _decode(raw) if plan_digest(raw) == self._settings.plan_digest else None

    async def plan(self) -> DeploymentPlan:
        """The plan; NotFound when there is none, WrongState when it is not the one the agent named."""
        cached = self.cached_plan()
        if cached is not None:
            return cached
        assert self._bucket is not None
        key = bucket_names.plan_key(self._settings.flow, self._settings.deployment)
        entry = await self._bucket.get(key)
        if entry is None or entry.value is None:
            raise NotFound(f"there is no plan {key}", reason="PLAN_NOT_FOUND", next_step="Is the flow deployed?")
        found = plan_digest(entry.value)
        if found != self._settings.plan_digest:
            raise WrongState(
                f"plan {key} has digest {found}, not {self._settings.plan_digest}",
                reason="PLAN_MISMATCH",
                next_step="Start the instance anew through the agent",
            )
        try:
            _write_atomically(self._file, entry.value)
        except OSError as error:  # the broker has it still
            log.warning("the plan cannot be cached", error=str(error))
        return _decode(entry.value)

    async def read_state(self) -> DeploymentState | None:
        """Reads the state from the broker; None when there is none (yet)."""
        assert self._bucket is not None
        entry = await self._bucket.get(bucket_names.state_key(self._settings.flow, self._settings.deployment))
        self._state = decode_state(entry.value) if entry is not None and entry.value else None
        if self._state is not None:
            self.on_state(self._state)
        return self._state

    def ask_again(self) -> None:
        """Something suggests that the state changed: reads it soon, at most once a second."""
        self._asked.set()

    async def follow(self) -> None:
        """Reads the state again when asked, and every half minute to four minutes; for ever."""
        rest_s = RESYNC_S
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest_s):
                    await self._asked.wait()
            asked = self._asked.is_set()
            self._asked.clear()
            before = self._state
            try:
                changed = await self.read_state() != before
                rest_s = RESYNC_S if asked or changed else min(2 * rest_s, LONGEST_RESYNC_S)
            except HeadraceError as error:
                log.debug("state not read", error=str(error))
                rest_s = RESYNC_S
            await asyncio.sleep(REREAD_PAUSE_S)


def step_of(plan: DeploymentPlan, name: str) -> StepPlan:
    """The plan's step of that name; NotFound if it has none."""
    try:
        return plan.step(name)
    except KeyError:
        raise NotFound(f"the plan has no step {name!r}", reason="STEP_NOT_FOUND") from None


def _decode(raw: bytes) -> DeploymentPlan:
    try:
        return decode_plan(raw)
    except msgspec.MsgspecError as error:
        raise WrongState(
            f"the plan cannot be read: {error}",
            reason="PLAN_UNREADABLE",
            next_step="It was written by another version of the mesh; restart the flow",
        ) from error


def _write_atomically(file: Path, content: bytes) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".part{os.getpid()}")
    try:
        partial.write_bytes(content)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)
