"""The watch over a full disk: what it takes from the broker's log, and when it restarts the broker."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from headrace.edge import full_disk
from headrace.edge.full_disk import FullDisk
from tests.support.eventually import eventually, remains

FULL = "[ERR] JetStream failed to store a msg: write 1.blk: no space left on device\n"


class Watched:
    """A log, a store and what the watch did."""

    def __init__(self, folder: Path) -> None:
        self.log_file, self.restarts, self.told = folder / "broker.log", 0, 0
        self.log_file.write_text(FULL)  # of an earlier run
        self.watch = FullDisk(self.log_file, folder, self._restart, on_full=self._tell, look_every_s=0.005)

    async def _restart(self) -> None:
        self.restarts += 1

    def _tell(self) -> None:
        self.told += 1

    def say(self, text: str) -> None:
        with self.log_file.open("a") as file:
            file.write(text)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "ROOM_BYTES", 0)


async def test_the_broker_is_restarted_once_for_what_was_said_since(tmp_path: Path, room: None) -> None:
    watched = Watched(tmp_path)
    running = asyncio.create_task(watched.watch.run())
    try:
        watched.say("[INF] nothing special\n")
        await remains(lambda: watched.restarts == 0, for_s=0.05)
        watched.say(FULL * 3)
        await eventually(lambda: watched.restarts == 1)
        await remains(lambda: watched.restarts == 1, for_s=0.05)
        watched.log_file.write_text(FULL)  # grown too long, and begun anew
        await eventually(lambda: watched.restarts == 2)
    finally:
        running.cancel()
    assert watched.told == 2


async def test_it_waits_for_room_and_tells_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "ROOM_BYTES", 1 << 62)
    watched = Watched(tmp_path)
    running = asyncio.create_task(watched.watch.run())
    try:
        watched.say(FULL)
        await eventually(lambda: watched.told == 1)
        watched.say(FULL)
        await remains(lambda: (watched.told, watched.restarts) == (1, 0), for_s=0.05)
        monkeypatch.setattr(full_disk, "ROOM_BYTES", 0)
        await eventually(lambda: watched.restarts == 1)
    finally:
        running.cancel()


async def test_a_disk_without_room_is_told_of_though_the_broker_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(full_disk, "FULL_BYTES", 1 << 62)
    monkeypatch.setattr(full_disk, "ROOM_BYTES", 1 << 62)
    watched = Watched(tmp_path)
    running = asyncio.create_task(watched.watch.run())
    try:
        await eventually(lambda: watched.told == 1)
        monkeypatch.setattr(full_disk, "FULL_BYTES", 0)
        monkeypatch.setattr(full_disk, "ROOM_BYTES", 0)
        await remains(lambda: (watched.told, watched.restarts) == (1, 0), for_s=0.05)
    finally:
        running.cancel()
