"""The `headrace` command from outside: a process of its own, its output, its exit status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "headrace.cli.main"]


def headrace(*arguments: str | Path, data: Path | None = None, limit_s: float = 60.0, stdin: str = "") -> Done:
    """Runs a command to its end. `data` becomes its --data."""
    options = ["--data", str(data)] if data is not None else []
    done = subprocess.run(
        [*COMMAND, *map(str, arguments), *options],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=limit_s,
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    return Done(done.returncode, done.stdout, done.stderr)


class Done:
    """A command that has ended."""

    def __init__(self, status: int, out: str, error: str) -> None:
        self.status, self.out, self.error = status, out, error

    def __str__(self) -> str:
        return f"status {self.status}\n{self.out[:2000]}\n{self.error[-2000:]}"

    def ok(self) -> str:
        """Standard output of a command that must have succeeded."""
        assert self.status == 0, str(self)
        return self.out

    def json(self) -> Any:
        """The one JSON value on its standard output."""
        return json.loads(self.ok())

    def refused(self, status: int = 1) -> str:
        """Standard error of a command that must have failed so: one to three lines, nothing on standard output."""
        assert self.out == ""
        return self.refused_after_pushes(status)

    def refused_after_pushes(self, status: int = 1) -> str:
        """Like `refused`, where lines of what was done before are allowed on standard output."""
        assert self.status == status, str(self)
        assert "Traceback" not in self.error
        assert 1 <= len(self.error.splitlines()) <= 3, self.error
        return self.error
