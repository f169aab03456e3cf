"""Notices saves: looks at the files of some folders again and again (stat), so that it works on any file system."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from headrace.edge.bundle import files_of
from headrace.model.bundle_rules import MAX_ENTRIES
from headrace.model.errors import HeadraceError

PAUSE_S = 0.1
# A look takes at most this part of the time, however many files there are.
SHARE = 0.1

Look = dict[Path, tuple[int, int, int]]


class FolderWatch:
    """Watches files and the folders of components, of these what a bundle would hold (at most 10 000 files each).

    `paths` is asked at each look, since a flow file may come to name other folders.
    """

    def __init__(self, paths: Callable[[], Iterable[Path]]) -> None:
        self._paths = paths
        self._told = self._seen = self._look()

    async def changed(self) -> list[Path]:
        """Waits until something differs from what the last call told (at first: from the start), and two looks running
        are the same, so that a save of several files is one change; answers what was made, altered or removed."""
        before, pause_s = self._told, PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            began = time.perf_counter()
            now = await asyncio.to_thread(self._look)
            pause_s = max(PAUSE_S, (time.perf_counter() - began) / SHARE)
            if now == self._seen and now != before:
                self._told = now
                return sorted(path for path in {*now, *before} if now.get(path) != before.get(path))
            self._seen = now

    def _look(self) -> Look:
        found: Look = {}
        for path in self._paths():
            for file in _files(path):
                try:
                    status = file.stat()
                except OSError:
                    continue
                found[file] = (status.st_mtime_ns, status.st_size, status.st_ino)
        return found


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    try:
        return [file for _, file in itertools.islice(files_of(path), MAX_ENTRIES)]
    except (HeadraceError, OSError):
        return [path / "component.yaml"]  # what cannot be packed is refused by the push, with its cause
