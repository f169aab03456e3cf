"""What /proc says of processes: children, process groups, environment; and how to end what is left over.

A process that was adopted (its parent died and this process is a subreaper) is known by a variable of its
environment, which is inherited by everything an instance starts, or by its session. On systems without /proc
the questions answer "nothing", and the process groups alone must do.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from pathlib import Path

_PROC = Path("/proc")
_POLL_S = 0.005
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_PF_EXITING = 4  # of the flags in /proc/<pid>/stat, see proc(5) and the kernel's sched.h


def children_of(pid: int) -> list[int]:
    """Direct children of a process, in no order; none if it is gone."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            found += [int(child) for child in _read(f"/proc/{pid}/task/{task}/children").split()]
    return found


def given_to_leader(pid: int) -> list[int]:
    """Children of a process's first thread: what it forked there, and every orphan that it took over as subreaper (the
    kernel gives these to the first thread that lives). One read, where `children_of` needs one a thread."""
    with contextlib.suppress(ValueError):
        return [int(child) for child in _read(f"/proc/{pid}/task/{pid}/children").split()]
    return []


def _read(path: str) -> bytes:
    """A small file of /proc, with as few calls as can be (it is read often, while nothing happens); b"" if gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        found = b""
        while part := os.read(descriptor, 65536):
            found += part
        return found
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def descendants_of(pid: int, limit: int = 10_000) -> list[int]:
    """Children, their children and so on, at most `limit`; what was orphaned meanwhile is not among them."""
    found: list[int] = []
    unseen = children_of(pid)
    while unseen and len(found) < limit:
        found += unseen
        unseen = [grandchild for child in unseen for grandchild in children_of(child)]
    return found[:limit]


def resident_bytes(pid: int) -> int:
    """Memory of a process that is its own: anonymous and in RAM (what files and shared segments map is left
    out, so that the sum over related processes counts nothing twice but pages shared since a fork)."""
    try:
        fields = _read(f"/proc/{pid}/statm").split()
        return max(0, int(fields[1]) - int(fields[2])) * _PAGE_BYTES
    except (IndexError, ValueError):
        return 0


def _stat_fields(pid: int) -> list[str]:
    """State, parent, group, session, ... of a process; [] if it is gone. The name may hold blanks: skip it."""
    return _read(f"/proc/{pid}/stat").decode(errors="replace").rpartition(")")[2].split()


def is_zombie(pid: int) -> bool:
    return _stat_fields(pid)[:1] == ["Z"]


def is_ending(pid: int) -> bool:
    """Whether the process is on its way out: its memory, with its environment, may be gone while its children are still
    its own. Until it is a zombie nobody else gets them."""
    fields = _stat_fields(pid)
    return len(fields) > 6 and bool(int(fields[6]) & _PF_EXITING)


def state_of(pid: int) -> str:
    """The letter of /proc: R, S, D, T (stopped), Z, ...; empty if it is gone."""
    return next(iter(_stat_fields(pid)), "")


def is_running(pid: int) -> bool:
    """Whether the process is there and not only waiting to be reaped."""
    fields = _stat_fields(pid)
    return bool(fields) and fields[0] not in ("Z", "X")


def activity_of(pid: int) -> str:
    """Page faults, processor time and threads of a process: the same text as before means that it did nothing worth
    counting meanwhile (less than a hundredth of a second, no new memory). Empty if it is gone."""
    fields = _stat_fields(pid)
    return " ".join((fields[7], fields[9], fields[11], fields[12], fields[17])) if len(fields) > 17 else ""


def session_of(pid: int) -> int:
    fields = _stat_fields(pid)
    return int(fields[3]) if fields else 0


def group_members(group: int) -> list[int]:
    """Running processes of a process group; the dead that nobody has reaped do not count."""
    found = []
    for pid in _all_pids():
        fields = _stat_fields(pid)
        if fields and fields[2] == str(group) and fields[0] not in ("Z", "X"):
            found.append(pid)
    return found


def _all_pids() -> list[int]:
    try:
        return [int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()]
    except OSError:
        return []


def environment_value(pid: int, variable: str) -> str | None:
    """The value a process was started with; None if it has none, is gone or is somebody else's."""
    try:
        raw = (_PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return None
    prefix = variable.encode() + b"="
    for part in raw.split(b"\0"):
        if part.startswith(prefix):
            return os.fsdecode(part[len(prefix) :])
    return None


def ancestors_of(pid: int) -> set[int]:
    """The process itself and all its parents."""
    found: set[int] = set()
    while pid > 0 and pid not in found:
        found.add(pid)
        fields = _stat_fields(pid)
        pid = int(fields[1]) if fields else 0
    return found


def processes_with(variable: str, value: str) -> list[int]:
    """Running processes of this user whose environment has the value; never this process or its parents."""
    spared = ancestors_of(os.getpid())
    return sorted(
        pid
        for pid in _all_pids()
        if pid not in spared and environment_value(pid, variable) == value and is_running(pid)
    )


async def end_processes_with(variable: str, value: str, *, limit_s: float) -> list[int]:
    """SIGKILL to every process found by its environment, until none is left; answers those it ended.

    TimeoutError when one is still there at the limit.
    """
    ended: set[int] = set()
    deadline = time.monotonic() + limit_s
    while left := processes_with(variable, value):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes do not end: {left}")
        for pid in left:
            ended.add(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)
    return sorted(ended)


def group_exists(group: int) -> bool:
    """Whether any process, reaped or not, is in the process group."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def signal_group(group: int, number: int) -> None:
    """Sends a signal to a process group; nothing if nobody is left in it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
