"""Brings an embedded broker back after its disk was full.

nats-server 2.15 freezes a stream of which one write has failed: it answers nobody who publishes there, also when there
is room again, until it is restarted (what it holds it goes on delivering). Whether a write failed stands in its log.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from headrace.edge.structured_log import get_logger

log = get_logger(__name__)

LOOK_EVERY_S = 1.0
# What must be free before a restart makes sense.
ROOM_BYTES = 8 * 1024 * 1024
# With less the disk is called full, also where no write has failed yet, or the broker says nothing of one: it does not
# of all that a batch would have stored.
FULL_BYTES = 256 * 1024
# Of what came into the log between two looks so much is read, from its end.
READ_AT_MOST = 64 * 1024
# Go's words for ENOSPC and EDQUOT.
FULL = (b"no space left on device", b"disk quota exceeded")


class FullDisk:
    """`run` it beside the broker; `restart` ends the broker, so that it is started again. `on_full` is told once when
    the disk is found full."""

    def __init__(
        self,
        log_file: Path,
        store: Path,
        restart: Callable[[], Awaitable[None]],
        *,
        on_full: Callable[[], None] = lambda: None,
        look_every_s: float = LOOK_EVERY_S,
    ) -> None:
        self._log_file, self._store, self._restart, self._on_full = log_file, store, restart, on_full
        self._look_every_s = look_every_s
        self._read_to = self._size()
        self._frozen = self._told = False

    async def run(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(self._look_every_s)
            self._frozen = self._met_a_full_disk() or self._frozen
            if not self._told and (self._frozen or self._free() < FULL_BYTES):
                self._told = True
                log.error("the broker's disk is full; it goes on when there is room", store=str(self._store))
                self._on_full()
            if self._told and self._free() >= ROOM_BYTES:
                await self._go_on()

    async def _go_on(self) -> None:
        log.warning("room on the broker's disk again", store=str(self._store), restarting=self._frozen)
        if self._frozen:
            await self._restart()
            self._read_to = self._size()
        self._frozen = self._told = False

    def _met_a_full_disk(self) -> bool:
        """Whether the log says so since the last look."""
        size = self._size()
        if size == self._read_to:
            return False
        begin = max(self._read_to if size > self._read_to else 0, size - READ_AT_MOST)
        self._read_to = size
        try:
            with self._log_file.open("rb") as file:
                file.seek(begin)
                text = file.read(READ_AT_MOST)
        except OSError:
            return False
        return any(words in text for words in FULL)

    def _size(self) -> int:
        try:
            return self._log_file.stat().st_size
        except OSError:
            return 0

    def _free(self) -> int:
        try:
            return shutil.disk_usage(self._store).free
        except OSError:
            return ROOM_BYTES - 1  # not known: neither full nor room
