"""What the makers of captured text share: running commands, blocks, and the marks of a page between which they go."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HEADRACE = [sys.executable, "-m", "headrace.cli.main"]


def run(*arguments: str, status: int = 0) -> str:
    """Runs a `headrace` command, which must end with the status; its standard output."""
    done = subprocess.run([*HEADRACE, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode != status:
        sys.exit(f"headrace {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout.rstrip("\n")


def block(command: str, text: str) -> str:
    """A command and what it shows."""
    return f"```text\n$ {command}\n{text}\n```"


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Replaces what stands between the two lines of a page; ends this process where it has no such lines."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(begin)
    _, last, after = rest.partition(end)
    if not mark or not last:
        sys.exit(f"{page} has no line {begin!r} or {end!r}")
    page.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}", encoding="utf-8")
