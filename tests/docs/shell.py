"""A bash that a reader would have open: folder, variables and background jobs last from one command to the next."""

from __future__ import annotations

import os
import secrets
import selectors
import signal
import subprocess
import time
from pathlib import Path

END_LIMIT_S = 5.0


class Shell:
    """`run` commands one after the other, then `close`. Output is what a terminal would show: both streams."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._mark = secrets.token_hex(8)
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env=environment,
            start_new_session=True,
            bufsize=0,
        )

    def run(self, command: str, limit_s: float = 60.0) -> tuple[int, str]:
        """Exit status and output; AssertionError when it takes longer."""
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{{ {command}\n}} < /dev/null\nprintf '\\n{self._mark} %d\\n' $?\n".encode())
        seen = b""
        end = f"\n{self._mark} ".encode()
        deadline = time.monotonic() + limit_s
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while not (end in seen and seen.endswith(b"\n")):
                ready = selector.select(max(0.0, deadline - time.monotonic()))
                chunk = os.read(process.stdout.fileno(), 65536) if ready else b""
                assert chunk, f"not done after {limit_s:g} s, or the shell has ended: {command}\n{seen.decode()}"
                seen += chunk
        output, _, status = seen.rpartition(end)
        return int(status), output.decode()

    def close(self) -> None:
        """Ends it with whatever it left in the background."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
                self._process.wait(END_LIMIT_S)
                break
            except ProcessLookupError:
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.communicate()
