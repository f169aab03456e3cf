"""Runs a command with a small disk of its own on a folder: a tmpfs in a mount namespace that nobody else sees.

    python -m tests.support.small_disk FOLDER BYTES COMMAND [ARGUMENT ...]

As root it needs no more; for anybody else it makes a user namespace, where the kernel allows that. Exit status 77:
neither is allowed here. The disk goes with its last process. `place` is how others reach it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

NOT_ALLOWED = 77
# `@pytest.mark.needs(small_disk.NEED)`
NEED = "small-disk"
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_REC, _MS_PRIVATE = 0x4000, 0x40000


def wrapped(folder: Path, size: int, command: list[str]) -> list[str]:
    """The command line that runs `command` with `size` bytes on `folder`."""
    return [sys.executable, "-m", "tests.support.small_disk", str(folder), str(size), *command]


@cache
def is_allowed(folder: Path) -> bool:
    """Whether this machine lets us have one."""
    return subprocess.run(wrapped(folder, 65536, ["true"]), timeout=20).returncode == 0


def place(pid: int, folder: Path) -> Path:
    """The folder as a process with the small disk sees it."""
    return Path(f"/proc/{pid}/root") / folder.relative_to("/")


def fill(folder: Path) -> Path:
    """Writes until there is no room; answers the file."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
    return filler


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def main(folder: str, size: str, *command: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    user, group = os.getuid(), os.getgid()
    try:
        if user != 0:
            _check(libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
            Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
        else:
            _check(libc.unshare(_CLONE_NEWNS))
        _check(libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None))
        _check(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 0, f"size={size},mode=700".encode()))
    except OSError as error:
        print(f"no small disk: {error}", file=sys.stderr)
        sys.exit(NOT_ALLOWED)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main(*sys.argv[1:])
