"""The present status of the instance, and who waits for its changes."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from services.sidecar.domain.lifecycle import Happening, Stage, State, STATE_OF, next_stage  # isort: skip


@dataclass(slots=True)
class Board:
    """Everything a status tells that changes with the stage; counters and pids are read when asked."""

    stage: Stage = Stage.SLEEPING
    generation: int = 0
    revision: str = ""
    cause: str = ""
    cause_reason: str = ""
    sdk: str = ""
    interpreter: str = ""
    stage_ms: dict[str, float] = field(default_factory=dict)
    changed_at_unix_ns: int = field(default_factory=time.time_ns)


class StatusBoard:
    """`version` grows with each change; `changed_since` waits for one."""

    def __init__(self) -> None:
        self.board = Board()
        self.version = 0
        self._changed = asyncio.Event()
        self._work = asyncio.Event()
        self._stage_since = time.monotonic()
        self._started_at = self._stage_since

    @property
    def stage(self) -> Stage:
        return self.board.stage

    @property
    def state(self) -> State:
        return STATE_OF[self.board.stage]

    def move(self, happening: Happening) -> None:
        """To the next stage; WrongState when the table has none."""
        self.board.stage = next_stage(self.board.stage, happening)
        self.touch()

    def touch(self) -> None:
        """Something changed: wakes all who wait."""
        self.board.changed_at_unix_ns = time.time_ns()
        self.version += 1
        self._changed.set()
        self._changed = asyncio.Event()

    def work_came(self) -> None:
        """Told for every message that comes while none is held, so it is cheap: wakes who waits for work."""
        if not self._work.is_set():
            self._work.set()

    def expect_work(self) -> None:
        """What is read of the work after this call is as new as `changed_or_work` takes it to be."""
        self._work.clear()

    def blame(self, cause: str, reason: str) -> None:
        self.board.cause, self.board.cause_reason = cause, reason

    def start_clock(self) -> None:
        """A start begins: stage times are measured from here."""
        self.board.stage_ms = {}
        self._stage_since = self._started_at = time.monotonic()

    def lap(self, stage: str) -> None:
        """The named part of the start is over; `total` grows with it."""
        now = time.monotonic()
        self.board.stage_ms[stage] = round((now - self._stage_since) * 1000, 3)
        self.board.stage_ms["total"] = round((now - self._started_at) * 1000, 3)
        self._stage_since = now

    async def changed_or_work(self, version: int, timeout_s: float) -> bool:
        """Returns at the first change after `version`, when work comes, or at the limit; whether work came since
        `expect_work`."""
        if self.version != version:
            return False
        waits = [asyncio.ensure_future(self._changed.wait()), asyncio.ensure_future(self._work.wait())]
        try:
            await asyncio.wait(waits, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
        return self._work.is_set()

    async def changed_since(self, version: int, timeout_s: float) -> None:
        """Returns at the first change after `version`, or at the limit."""
        if self.version != version:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._changed.wait()
        except TimeoutError:
            return
