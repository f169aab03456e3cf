"""The command line of what makes files of this repository: writes them, or with `--check` only compares."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from pathlib import Path


def keep(about: str | None, command: str, render: Callable[[], Mapping[Path, str]]) -> int:
    """The exit status: 1 where `--check` finds a file that is not what `render` says. `command` is what writes it."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    check = parser.parse_args().check
    stale = {file: text for file, text in render().items() if not file.exists() or _read(file) != text}
    if check and stale:
        print(f"not up to date: {', '.join(map(str, stale))}; run: {command}", file=sys.stderr)
        return 1
    for file, text in stale.items():
        file.write_text(text, encoding="utf-8")
    return 0


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8")
