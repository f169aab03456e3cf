"""Keeps one process running: starts it again with back-off when it ends by itself, until it is stopped.

The one home of supervision: the agent uses it for instances, `headrace up` for the services and the broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path

from headrace.edge.child_process import ChildProcess, Command, describe_exit, last_lines
from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError, Unavailable

log = get_logger(__name__)

FIRST_DELAY_S = 0.1
# A person's choice for a machine that is to come back fast, whatever it costs; tests that kill for hours need it.
LONGEST_DELAY_S = min(max(float(os.environ.get("HEADRACE_RESTART_DELAY_LIMIT_S") or 5.0), FIRST_DELAY_S), 60.0)
HEALTHY_AFTER_S = 10.0
READY_LIMIT_S = 60.0
END_AFTER_CLOSED_PIPE_S = 1.0
LOG_LIMIT_BYTES = 16 * 1024 * 1024
LOG_CHECK_S = 30.0

Facts = dict[str, object]


class ProcessState(StrEnum):
    STARTING = "STARTING"
    UP = "UP"
    BACKING_OFF = "BACKING_OFF"
    STOPPING = "STOPPING"
    ENDED = "ENDED"


def restart_delay_s(failures: int) -> float:
    """Delay before the next start after that many failures in a row: 100 ms doubling to 5 s (or
    $HEADRACE_RESTART_DELAY_LIMIT_S)."""
    return min(FIRST_DELAY_S * 2.0 ** min(failures - 1, 16), LONGEST_DELAY_S)


async def spawn_ready(command: Command) -> ChildProcess:
    """The usual way to start a process that reports readiness."""
    return ChildProcess.spawn(command, readiness=True)


async def read_readiness(child: ChildProcess) -> Facts:
    """The usual way to become ready: the line on the readiness pipe."""
    return await child.ready(READY_LIMIT_S)


class Supervised:
    """One supervised process. `start` it, perhaps await `started`, and `stop` it.

    `command` is asked before each start. `wait_until_ready` gets the new process and answers what it reports;
    it must end when the process does. `clean_up` runs after each exit, with the pid that was.
    `on_change` is called at every change of state, in the loop, and must neither block nor raise.
    `spawn` starts a process that reports readiness. Through `gate` only so many processes become ready at a time:
    together they would all take too long.
    """

    def __init__(
        self,
        name: str,
        command: Callable[[], Command],
        *,
        wait_until_ready: Callable[[ChildProcess], Awaitable[Facts]] = read_readiness,
        clean_up: Callable[[int], Awaitable[None]] | None = None,
        on_change: Callable[[], None] | None = None,
        ready_limit_s: float = READY_LIMIT_S,
        gate: asyncio.Semaphore | None = None,
        spawn: Callable[[Command], Awaitable[ChildProcess]] = spawn_ready,
    ) -> None:
        self.name = name
        self.state = ProcessState.ENDED
        self.facts: Facts = {}
        self.starts = 0
        self.last_exit = ""
        self.started_at_unix_s = 0.0
        self._command = command
        self._wait_until_ready = wait_until_ready
        self._clean_up = clean_up
        self._on_change = on_change
        self._ready_limit_s = ready_limit_s
        self._gate = gate
        self._spawn = spawn
        self._at_gate: asyncio.Task[bool] | None = None
        self._child: ChildProcess | None = None
        self._failures = 0
        self._stopping = asyncio.Event()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """Of the present process; 0 between two."""
        return self._child.pid if self._child is not None and self._child.exit_status is None else 0

    @property
    def address(self) -> str:
        """What the process reported as its address; empty until it is up."""
        return str(self.facts.get("address", "")) if self.state is ProcessState.UP else ""

    def start(self) -> None:
        """Begins; the first process is started at once."""
        assert self._task is None, "started twice"
        self._change(ProcessState.STARTING)
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"supervise {self.name}")

    async def started(self, excused: Callable[[], bool] = lambda: False) -> Facts:
        """Until it is up for the first time; Unavailable, with the end of its log, when a run ends before.

        A run does not count that began, or ended, while `excused` answers True (what it needs is not there yet).
        """
        began_excused = excused()
        while self.state is not ProcessState.UP:
            if self.state is not ProcessState.STARTING or self._failures:
                if self._stopping.is_set() or not (began_excused or excused()):
                    raise self._not_started()
                self._failures = 0
            began_excused = excused()
            self._changed.clear()
            await self._changed.wait()
        return self.facts

    async def stop(self, grace_s: float) -> None:
        """SIGTERM, SIGKILL after the grace; returns when nothing of it is left. Also ends a back-off."""
        self._stopping.set()
        if self._task is None:
            return
        if self._at_gate is not None:
            self._at_gate.cancel()
        if self._child is not None and self.state is not ProcessState.ENDED:
            self._change(ProcessState.STOPPING)
            await self._child.end(grace_s)
        await self._task

    async def restart(self, grace_s: float) -> None:
        """Ends the present process as `stop` does; it is started again."""
        if self._child is not None and self._child.exit_status is None and not self._stopping.is_set():
            await self._child.end(grace_s)

    def kill(self) -> None:
        """SIGKILL to the process group, without waiting; it is not started again."""
        self._stopping.set()
        if self._child is not None:
            self._child.kill()

    async def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                await self._run_once()
                if self._stopping.is_set():
                    break
                self._change(ProcessState.BACKING_OFF)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(restart_delay_s(self._failures)):
                        await self._stopping.wait()
                if not self._stopping.is_set():
                    self._change(ProcessState.STARTING)
        finally:
            if self._child is not None:
                self._child.kill()
            self._change(ProcessState.ENDED)

    async def _run_once(self) -> None:
        """One process from start to end."""
        self.facts = {}
        if not await self._pass_gate():
            return
        try:
            command = self._command()
            bound_log(command.log_file)
            if self._wait_until_ready is read_readiness:
                self._child = await self._spawn(command)
            else:
                self._child = ChildProcess.spawn(command)
        except (HeadraceError, OSError) as error:
            self._leave_gate()
            self._note_end(str(error), healthy=False)
            return
        child = self._child
        if self._stopping.is_set():  # meanwhile
            self._leave_gate()
            await child.end(0.0)
            return
        self.starts += 1
        self.started_at_unix_s = time.time()
        self._change(self.state)
        try:
            up_since = await self._become_ready(child)
        finally:
            self._leave_gate()
        status = await self._wait_for_exit(child, command.log_file)
        healthy = up_since > 0 and time.monotonic() - up_since >= HEALTHY_AFTER_S
        self._note_end(describe_exit(status), healthy=healthy)
        try:
            await child.group_gone()
            if self._clean_up is not None:
                await self._clean_up(child.pid)
        except TimeoutError as error:
            log.error("left over processes", name=self.name, error=str(error))

    async def _pass_gate(self) -> bool:
        """False when it is stopped while it waits."""
        if self._gate is None:
            return True
        self._at_gate = asyncio.get_running_loop().create_task(self._gate.acquire())
        try:
            await asyncio.wait([self._at_gate])
            passed = not self._at_gate.cancelled()
        finally:
            self._at_gate.cancel()
            self._at_gate = None
        if passed and self._stopping.is_set():
            self._leave_gate()
            return False
        return passed

    def _leave_gate(self) -> None:
        if self._gate is not None:
            self._gate.release()

    async def _become_ready(self, child: ChildProcess) -> float:
        """Monotonic seconds since when it is up; 0 when it ended or did not come up, and was ended."""
        try:
            async with asyncio.timeout(self._ready_limit_s):
                facts = await self._wait_until_ready(child)
        except (TimeoutError, ConnectionError, ValueError) as error:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(END_AFTER_CLOSED_PIPE_S):
                    await child.wait()
            if child.exit_status is None and not self._stopping.is_set():
                log.error("does not become ready", name=self.name, pid=child.pid, error=repr(error))
                await child.end(1.0)
            return 0.0
        if self.state is ProcessState.STARTING and child.exit_status is None:
            self.facts = facts
            self._change(ProcessState.UP)
        return time.monotonic()

    async def _wait_for_exit(self, child: ChildProcess, log_file: Path | None) -> int:
        while True:
            try:
                async with asyncio.timeout(LOG_CHECK_S):
                    return await child.wait()
            except TimeoutError:
                bound_log(log_file)

    def _note_end(self, how: str, *, healthy: bool) -> None:
        self.last_exit = how
        self._failures = 1 if healthy else self._failures + 1
        if not self._stopping.is_set():
            log.warning("process ended by itself", name=self.name, how=how, failures=self._failures)

    def _not_started(self) -> Unavailable:
        lines = last_lines(self._log_file())
        said = f": {' | '.join(lines)}" if lines else ""
        return Unavailable(
            f"{self.name} did not start ({self.last_exit or 'it was stopped'}){said}",
            reason="PROCESS_NOT_STARTED",
            next_step=f"See {self._log_file()}" if lines else "See its log",
        )

    def _log_file(self) -> Path | None:
        try:
            return self._command().log_file
        except HeadraceError:
            return None

    def _change(self, state: ProcessState) -> None:
        if self._stopping.is_set() and state in (ProcessState.BACKING_OFF, ProcessState.STARTING, ProcessState.UP):
            state = self.state
        self.state = state
        self._changed.set()
        if self._on_change is not None:
            self._on_change()


def bound_log(log_file: Path | None, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Past the limit the log becomes `<name>.1` and starts again empty; whoever appends to it goes on."""
    if log_file is None:
        return
    with contextlib.suppress(OSError):
        if log_file.stat().st_size > limit_bytes:
            shutil.copyfile(log_file, log_file.with_name(log_file.name + ".1"))
            os.truncate(log_file, 0)
