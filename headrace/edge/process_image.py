"""What /proc shows of this process: a forked one is found by environment and command line like an executed one.

A fork keeps the memory that /proc/<pid>/environ and /proc/<pid>/cmdline show, which is the parent's. This writes the
child's own into the same places, as setproctitle does. Linux only; elsewhere it does nothing.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

# So much more room than its own environment has a process that is to be forked.
ROOM_VARIABLE = "HEADRACE_ROOM"
ROOM_BYTES = 8192
_ARG_START, _ENV_END = 45, 48


def show_as(command: Sequence[str]) -> None:
    """Makes /proc show this command line and the present os.environ; what finds no room is left out.

    The environment is shown in the order of os.environ: what others look for has to stand first.
    """
    places = _places()
    if places is None:
        return
    arg_start, arg_end, env_start, env_end = places
    # From here on getenv finds copies on the heap: what the first block holds is for show only.
    present = dict(os.environ)
    os.environ.clear()
    os.environ.update(present)
    _write(arg_start, arg_end, [os.fsencode(part) for part in command])
    _write(env_start, env_end, [os.fsencode(f"{name}={value}") for name, value in present.items()])


def _places() -> tuple[int, int, int, int] | None:
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        arg_start, arg_end, env_start, env_end = map(int, fields[_ARG_START : _ENV_END + 1])
    except (OSError, ValueError):
        return None
    return (arg_start, arg_end, env_start, env_end) if 0 < arg_start < arg_end <= env_start < env_end else None


def _write(start: int, end: int, parts: list[bytes]) -> None:
    """Zero-terminated strings into [start, end), the rest zeros; the last byte stays zero."""
    block = bytearray()
    for part in parts:
        if len(block) + len(part) + 1 < end - start:
            block += part + b"\0"
    ctypes.memmove(start, bytes(block).ljust(end - start, b"\0"), end - start)
