"""`headrace dev` as a process of its own, read through its JSON lines."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.support.commands import COMMAND

LIMIT_S = 40.0


class DevProcess:
    """Started on entry, ended (Ctrl-C, at the latest kill -9) on exit."""

    def __init__(self, file: Path, data: Path, *options: str) -> None:
        self._command = [*COMMAND, "dev", str(file), "--data", str(data), "--json", *options]
        self._events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.past: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
            env={**os.environ, "HEADRACE_PARENT_PID": str(os.getpid())},
        )
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._events.put(json.loads(line))

    def until(self, event: str, within_s: float = LIMIT_S) -> dict[str, Any]:
        """The next event of that kind; AssertionError names those that came instead."""
        deadline = time.monotonic() + within_s
        while True:
            try:
                found = self._events.get(timeout=max(0.01, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {event!r} within {within_s:g} s, but {self.past}") from None
            self.past.append(found)
            if found["event"] == event:
                return found

    def interrupt(self, limit_s: float = 20.0) -> int:
        """Ctrl-C; answers the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(limit_s)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            try:
                self.interrupt()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
