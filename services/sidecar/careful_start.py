"""Keeps `SidecarDeaths` in a file beside the sockets, and applies it. Written at the start, and then only while
something is wrong.

The file survives the process, not the machine: that is what it is for, so it is written without fsync. Without
it (a folder that cannot be written) a start is never careful.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from headrace.edge.structured_log import get_logger
from services.sidecar.domain.delivery import Problem
from services.sidecar.domain.sidecar_deaths import SidecarDeaths

log = get_logger(__name__)

LASTING_S = 120.0
"""Age of a life that lasts. So long what lives before had held may still come: the broker delivers it again when its
ack wait is over, each at its own time; what is done early says nothing of what has not come yet."""


class CarefulStart:
    """One life's view. A file that is there means that the life before came to no orderly end."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file = file
        self._clock = clock
        self._lasts_at = clock() + LASTING_S
        self._pending: set[str] = set()
        deaths = _read(file)
        self._deaths = deaths if deaths is not None else SidecarDeaths()
        if deaths is not None:
            deaths.died()
            if self.careful:
                log.warning("the last sidecars finished nothing: what they held runs alone", deaths=deaths.deaths)
        self._write()

    @property
    def careful(self) -> bool:
        """What was delivered before must run alone."""
        return self._deaths.careful

    def guilt(self, message_id: str) -> Problem | None:
        """Why a message that was delivered before is given up without another attempt; None for all but the one that
        ends sidecars."""
        self._pending.add(message_id)
        if not self._deaths.is_guilty(message_id):
            return None
        deaths = self._deaths.solo[message_id]
        return Problem("SIDECAR_DIED", f"the sidecar died {deaths} times while only this message ran", 502)

    def runs_alone(self, message_id: str) -> None:
        """It is about to be called, and nothing else runs."""
        if self.careful:
            self._deaths.runs = message_id
            self._write()

    @property
    def forgotten(self) -> bool:
        """Nothing of earlier lives counts any more: there is no need to tell what `ended`."""
        return self._deaths.empty

    def ended(self, message_id: str) -> None:
        """Its call is over, or it was given up."""
        if self.forgotten:
            return
        news = self._deaths.ended(message_id)
        self._pending.discard(message_id)
        if not self._pending and self._clock() >= self._lasts_at:
            log.info("this sidecar lasts, and all that earlier ones had held is done", deaths=self._deaths.deaths)
            self._deaths, news = SidecarDeaths(), True
        if news:
            self._write()

    def forget(self) -> None:
        """An orderly end: the next life has nothing to be careful about."""
        with contextlib.suppress(OSError):
            self._file.unlink(missing_ok=True)

    def _write(self) -> None:
        record = {"deaths": self._deaths.deaths, "runs": self._deaths.runs, "solo": self._deaths.solo}
        try:
            partial = self._file.with_suffix(".part")
            partial.write_text(json.dumps(record))
            os.replace(partial, self._file)
        except OSError as error:
            log.warning("cannot note what runs", error=str(error))


def _read(file: Path) -> SidecarDeaths | None:
    try:
        record = json.loads(file.read_bytes())
        solo = {str(name): int(count) for name, count in record["solo"].items()}
        return SidecarDeaths(int(record["deaths"]), str(record["runs"]), solo)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return SidecarDeaths()
