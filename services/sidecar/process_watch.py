"""Looks at what a component's processes use, and says when that is more than they may.

Two bounds work together. The kernel holds the memory of each process by itself (RLIMIT_DATA, set from outside right
after the start, inherited by what it forks), so that greed is an allocation that fails. This watch adds up all the
processes of the instance, which no limit of one process can do, and counts them. It needs no privileges, no
cgroup, and looks seldom while the component has nothing to do.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from headrace.edge.child_process import reap_adopted
from headrace.edge.process_table import activity_of, descendants_of, resident_bytes
from headrace.edge.structured_log import get_logger

log = get_logger(__name__)

BUSY_LOOK_S = 0.25
LONGEST_PAUSE_S = 1.0
IDLE_LOOK_S = 2.0
REST_LOOK_S = 5.0
MEBIBYTE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """What the processes of one component may use together; 0 is no limit. Each may map twice the memory."""

    memory_bytes: int = 0
    processes: int = 0


@dataclass(frozen=True, slots=True)
class Excess:
    """A limit that is exceeded: upper-case reason, and the cause as a phrase after `the component`."""

    reason: str
    cause: str


def limit_process(pid: int, limits: ProcessLimits) -> None:
    """Bounds the data segment of a process just started, and of all it forks: no core file, and no more private
    memory than twice the limit (threads' stacks and the allocator's reserve count here, unused or not)."""
    try:
        import resource

        with contextlib.suppress(OSError, ValueError):
            resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))
            if limits.memory_bytes:
                bound = 2 * limits.memory_bytes
                resource.prlimit(pid, resource.RLIMIT_DATA, (bound, bound))
    except (ImportError, AttributeError):
        log.debug("this system has no limits for other processes")


def processes_of(pid: int) -> list[int]:
    """The component `pid`, what it started, and the orphans that this process took over from it; the dead among these
    are reaped."""
    processes = [pid, *descendants_of(pid)]
    for orphan in reap_adopted():
        processes += [orphan, *descendants_of(orphan)]
    return processes


def find_excess(processes: list[int], limits: ProcessLimits) -> Excess | None:
    """Which of the limits these processes exceed together."""
    if limits.processes and len(processes) > limits.processes:
        return Excess("PROCESS_LIMIT", f"was ended: more than {limits.processes} processes")
    if limits.memory_bytes:
        used = sum(resident_bytes(process) for process in processes)
        if used > limits.memory_bytes:
            allowed, found = limits.memory_bytes // MEBIBYTE, used // MEBIBYTE
            return Excess("MEMORY_LIMIT", f"was ended: {found} MiB of memory, more than {allowed} MiB")
    return None


class ProcessWatch:
    """Watches one component process, what it started, and the orphans taken over from it. Give `run` to a task.

    It looks each quarter of a second while `busy`, else every two seconds; whether calls run it asks more and more
    seldom (once a second in the end) while those that came were always over by then. Once it has seen that nothing runs
    besides the component, and that this has used neither processor nor new memory since the look before, it asks for
    no more than that every five seconds, until that changes or `work_came`.
    """

    def __init__(
        self,
        pid: int,
        limits: ProcessLimits,
        busy: Callable[[], bool],
        *,
        idle_look_s: float = IDLE_LOOK_S,
        rest_look_s: float = REST_LOOK_S,
    ) -> None:
        self._pid = pid
        self._limits = limits
        self._busy = busy
        self._idle_look_s = idle_look_s
        self._rest_look_s = rest_look_s
        self._work = asyncio.Event()
        self._pause_s = BUSY_LOOK_S
        self.resting = False

    def work_came(self) -> None:
        """Calls begin. Cheap: told for every message that comes while none is held."""
        if not self._work.is_set():
            self._work.set()

    async def run(self) -> Excess:
        """Returns when a limit is exceeded."""
        activity = ""
        while True:
            await self._until_due()
            processes = processes_of(self._pid)
            excess = find_excess(processes, self._limits)
            if excess is not None:
                return excess
            before, activity = activity, self._activity(processes)
            if activity and activity == before:
                await self._rest(activity)

    async def _until_due(self) -> None:
        """A quarter of a second if calls run then, else two."""
        clock = asyncio.get_running_loop().time
        due = clock() + self._idle_look_s
        while (left_s := due - clock()) > 0 and (self._busy() or await self._work_within(left_s)):
            self._work.clear()
            await asyncio.sleep(self._pause_s)
            if self._busy():
                self._pause_s = BUSY_LOOK_S
                return
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    async def _work_within(self, limit_s: float) -> bool:
        try:
            async with asyncio.timeout(limit_s):
                await self._work.wait()
        except TimeoutError:
            return False
        return True

    def _activity(self, processes: list[int]) -> str:
        """What changes as soon as the component does anything; empty if something runs besides it, or calls do."""
        return "" if self._busy() or len(processes) > 1 else activity_of(self._pid)

    async def _rest(self, activity: str) -> None:
        """Until calls begin, or the component does anything of its own."""
        self._work.clear()
        self._pause_s = BUSY_LOOK_S
        self.resting = True
        while self._activity(processes_of(self._pid)) == activity and not await self._work_within(self._rest_look_s):
            pass
        self.resting = False
