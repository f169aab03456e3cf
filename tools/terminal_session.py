"""A command in a real pseudo-terminal, and what its screen shows: for commands that draw whole frames (`headrace top`).

    with TerminalSession(["headrace", "top", "orders"], columns=100, lines=20) as session:
        session.until("RUNNING")
        session.send("q")

Python's standard library only.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

FRAME_BEGIN, FRAME_END = "\x1b[?2026h", "\x1b[?2026l"
ALTERNATE_ON, ALTERNATE_OFF = "\x1b[?1049h", "\x1b[?1049l"
CURSOR_ON, CURSOR_OFF = "\x1b[?25h", "\x1b[?25l"
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
LIMIT_S = 20.0
READ_BYTES = 65536


class TerminalSession:
    """`attributes` are the terminal's, as the command found them."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 100,
        lines: int = 24,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        self._near, far = pty.openpty()
        self.resize(columns, lines, tell=False)
        self.attributes = termios.tcgetattr(far)
        self.output = ""
        self._far = far
        self.process = subprocess.Popen(
            list(command), stdin=far, stdout=far, stderr=far, cwd=folder, start_new_session=True,
            env={**os.environ, "TERM": "xterm-256color", **(environment or {})}, preexec_fn=_own_terminal,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._near)
        os.close(self._far)

    def resize(self, columns: int, lines: int, *, tell: bool = True) -> None:
        """The window is now that large."""
        fcntl.ioctl(self._near, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        if tell:
            os.killpg(self.process.pid, signal.SIGWINCH)

    def send(self, keys: str) -> None:
        """Types."""
        os.write(self._near, keys.encode())

    def attributes_now(self) -> list[object]:
        """Of the terminal; the same as at the beginning once the command is gone."""
        return termios.tcgetattr(self._far)

    def _read(self, limit_s: float) -> None:
        ready, _, _ = select.select([self._near], [], [], limit_s)
        if ready:
            self.output += os.read(self._near, READ_BYTES).decode(errors="replace")

    @property
    def frame(self) -> list[str]:
        """The last whole frame, its lines without colours; empty before there is one."""
        whole = self.output.rpartition(FRAME_END)[0].rpartition(FRAME_BEGIN)[2]
        return [line.rstrip() for line in _CONTROL.sub("", whole).splitlines()]

    def until(self, pattern: str, *, lines: int = 0, limit_s: float = LIMIT_S) -> list[str]:
        """The first frame that has it (and so many lines); AssertionError with the last one when it does not come."""
        deadline = time.monotonic() + limit_s
        while True:
            self._read(0.05)
            frame = self.frame
            if re.search(pattern, "\n".join(frame), re.MULTILINE) and lines in (0, len(frame)):
                return frame
            if time.monotonic() > deadline or self.process.poll() is not None:
                shown = "\n".join(frame)
                raise AssertionError(f"{pattern!r} did not come; status {self.process.poll()}, the screen:\n{shown}")

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Its exit status; what it printed after its screen was gone is `after`."""
        deadline = time.monotonic() + limit_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline, "it does not end"
            self._read(0.02)
        while select.select([self._near], [], [], 0.05)[0]:
            self._read(0)
        return self.process.returncode

    @property
    def after(self) -> str:
        """What came after its screen was given back."""
        return _CONTROL.sub("", self.output.rpartition(ALTERNATE_OFF)[2]).replace("\r\n", "\n")


def _own_terminal() -> None:
    """The child's standard input becomes its controlling terminal, so that Ctrl-C and Ctrl-Z reach it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
