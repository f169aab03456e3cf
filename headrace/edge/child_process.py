"""Starts one process tied to this one, in a session and process group of its own, and ends all of it.

Spawning is vfork + exec in the loop's thread (no preexec_fn: grpc and fork do not mix; the parent-death
signal follows the thread that started the child, so it must not be a worker thread). The exit is noticed
through a pidfd. Whatever else is in the group is killed at that moment, while the dead leader still holds
the group's id, so that no stranger can be hit. `headrace/edge/supervised.py` keeps such a process running.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from headrace.edge.parent_death import PARENT_PID_VARIABLE, become_subreaper, tied_command
from headrace.edge.process_table import (
    descendants_of,
    environment_value,
    given_to_leader,
    group_exists,
    group_members,
    is_ending,
    is_zombie,
    session_of,
    signal_group,
)
from headrace.edge.readiness import READY_FD_VARIABLE, read_ready
from headrace.model.errors import Unavailable

KILL_LIMIT_S = 5.0
_POLL_S = 0.005
_OUTPUT_CHUNK = 1 << 16
_STANDARD_ERROR = 2

_owned: set[int] = set()
_adopting = False

OnOutput = Callable[[bytes], float | None]
"""Takes a chunk; may answer for how many seconds nothing more is to be read."""


@dataclass(frozen=True, slots=True)
class Command:
    """What to run. `environment` is added to this process's own; a value None takes a variable away.

    Output goes to `log_file` (appended), else to `on_output` (raw chunks, in the loop), else to this process's
    own standard error. `foreign`: a program that does not tie itself to its parent.
    """

    arguments: tuple[str, ...]
    environment: Mapping[str, str | None] = field(default_factory=dict)
    log_file: Path | None = None
    on_output: OnOutput | None = None
    foreign: bool = False
    folder: Path | None = None


def own_module(module: str, *arguments: str) -> tuple[str, ...]:
    """Arguments that run one of our packages with this interpreter.

    -P: a folder `services` or `headrace` where a person happens to stand must not be taken for ours.
    """
    return (sys.executable, "-P", "-m", module, *arguments)


def adopt_orphans(*, reap_at_once: bool = True) -> None:
    """Makes this process the parent and reaper of its orphaned descendants. Call it in the running loop.

    Without `reap_at_once` (for a process whose loop needs SIGCHLD itself) call `reap_adopted` now and then.
    """
    global _adopting
    become_subreaper()
    _adopting = True
    if not reap_at_once:
        return
    with contextlib.suppress(NotImplementedError, RuntimeError, ValueError):
        asyncio.get_running_loop().add_signal_handler(signal.SIGCHLD, reap_adopted)


def adopted() -> list[int]:
    """Children that this process did not start: not through this module, and not in its own session either,
    in which children by other means are."""
    if not _adopting:
        return []
    session = os.getsid(0)
    return [pid for pid in given_to_leader(os.getpid()) if pid not in _owned and session_of(pid) != session]


def reap_adopted() -> list[int]:
    """Reaps dead orphans, and answers the others; does nothing unless `adopt_orphans` was called."""
    left = []
    for pid in adopted():
        if is_zombie(pid):
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        else:
            left.append(pid)
    return left


async def end_adopted(*, session: int = 0, variable: str = "", value: str = "", limit_s: float = KILL_LIMIT_S) -> None:
    """Kills adopted orphans of a session, or with a value in their environment, until none is left; all of
    them without a criterion. TimeoutError at the limit."""
    deadline = time.monotonic() + limit_s
    while True:
        reap_adopted()
        left = [
            pid
            for pid in adopted()
            if (session and session_of(pid) == session)
            or (variable and environment_value(pid, variable) == value)
            or not (session or variable)
            or is_ending(pid)  # whose it is cannot be read any more, nor what it leaves behind
        ]
        if not left:
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"orphans do not end: {left}")
        # Their children first come to light when they are gone: all that can be seen goes at once.
        for pid in [found for one in left for found in (one, *descendants_of(one))]:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(_POLL_S)


class ChildProcess:
    """One run of one command. Create it with `spawn` inside the running loop."""

    def __init__(self, pid: int, reap: Callable[[], int], ready_descriptor: int | None) -> None:
        """`reap` waits for the process's end and answers its status, negative for a signal."""
        self.pid = pid
        self._reap = reap
        self._ready_descriptor = ready_descriptor
        self._loop = asyncio.get_running_loop()
        self._exited: asyncio.Future[int] = self._loop.create_future()
        self.started_at_mono_s = time.monotonic()
        _owned.add(pid)
        self._watch_exit()

    @classmethod
    def spawn(cls, command: Command, *, readiness: bool = False) -> ChildProcess:
        """Starts it; `readiness` gives it the pipe that `ready` reads. Unavailable when it cannot be started."""
        environment = environment_of(command)
        arguments = tied_command(list(command.arguments)) if command.foreign else list(command.arguments)
        read_end = write_end = None
        with contextlib.ExitStack() as opened:
            output: object = None
            if command.log_file is not None:
                command.log_file.parent.mkdir(parents=True, exist_ok=True)
                output = opened.enter_context(open(command.log_file, "ab"))
            elif command.on_output is not None:
                output = subprocess.PIPE
            else:
                output = _STANDARD_ERROR
            if readiness:
                read_end, write_end = os.pipe()
                opened.callback(os.close, write_end)
                environment[READY_FD_VARIABLE] = str(write_end)
            try:
                process = subprocess.Popen(
                    arguments,
                    env=environment,
                    cwd=command.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=output,  # type: ignore[arg-type]
                    stderr=subprocess.STDOUT,
                    pass_fds=() if write_end is None else (write_end,),
                    start_new_session=True,
                )
            except OSError as error:
                if read_end is not None:
                    os.close(read_end)
                raise Unavailable(
                    f"{command.arguments[0]} cannot be started: {error.strerror or error}",
                    reason="PROCESS_NOT_STARTED",
                    next_step="Check that the program is there and may be run, and the limit of processes",
                ) from error
        child = cls(process.pid, process.wait, read_end)
        if command.on_output is not None and process.stdout is not None:
            child._follow_output(process.stdout, command.on_output)
        return child

    @classmethod
    def adopt(
        cls,
        pid: int,
        *,
        ready_descriptor: int | None = None,
        output: IO[bytes] | None = None,
        on_output: OnOutput | None = None,
    ) -> ChildProcess:
        """A child of this process that was forked and not spawned, leader of a group of its own.

        It owns the read ends of its readiness pipe and of its output from now on."""
        child = cls(pid, lambda: _wait_for(pid), ready_descriptor)
        if output is not None and on_output is not None:
            child._follow_output(output, on_output)
        return child

    @property
    def exit_status(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._exited.result() if self._exited.done() else None

    def _watch_exit(self) -> None:
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:  # adopted, and over and reaped before
            self._settle(-signal.SIGKILL)
            return
        except (AttributeError, OSError):
            threading.Thread(target=self._wait_in_thread, daemon=True).start()
            return

        def exited() -> None:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)
            signal_group(self.pid, signal.SIGKILL)
            self._settle(self._reap())

        self._loop.add_reader(descriptor, exited)

    def _wait_in_thread(self) -> None:
        status = self._reap()
        with contextlib.suppress(RuntimeError):  # the loop may be closed by then
            self._loop.call_soon_threadsafe(self._settle, status)

    def _settle(self, status: int) -> None:
        _owned.discard(self.pid)
        if self._ready_descriptor is not None:
            os.close(self._ready_descriptor)
            self._ready_descriptor = None
        if not self._exited.done():
            self._exited.set_result(status)

    def _follow_output(self, stream: IO[bytes], on_output: OnOutput) -> None:
        descriptor = stream.fileno()
        os.set_blocking(descriptor, False)

        def readable() -> None:
            try:
                chunk = os.read(descriptor, _OUTPUT_CHUNK)
            except BlockingIOError:
                return
            if not chunk:
                self._loop.remove_reader(descriptor)
                stream.close()
            elif pause_s := on_output(chunk):
                # Whoever writes more has to wait: the pipe is full soon.
                self._loop.remove_reader(descriptor)
                self._loop.call_later(pause_s, self._loop.add_reader, descriptor, readable)

        self._loop.add_reader(descriptor, readable)

    async def ready(self, timeout_s: float) -> dict[str, object]:
        """The facts it reported; ConnectionError when it ended first, TimeoutError past the limit. Call once."""
        assert self._ready_descriptor is not None or self._exited.done(), "spawned without readiness"
        if self._ready_descriptor is None:
            raise ConnectionError("the process ended before it was ready")
        descriptor, self._ready_descriptor = self._ready_descriptor, None
        return await read_ready(descriptor, timeout_s)

    async def wait(self) -> int:
        """Until it has exited and is reaped; no limit of its own."""
        return await asyncio.shield(self._exited)

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone."""
        if not self._exited.done():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to the whole group."""
        if not self._exited.done():
            signal_group(self.pid, signal.SIGKILL)

    async def end(self, grace_s: float) -> int:
        """SIGTERM to the group, SIGKILL after the grace; returns when nothing of the group is left."""
        if not self._exited.done():
            signal_group(self.pid, signal.SIGTERM)
            try:
                async with asyncio.timeout(grace_s):
                    await self.wait()
            except TimeoutError:
                self.kill()
        async with asyncio.timeout(KILL_LIMIT_S):
            status = await self.wait()
        await self.group_gone()
        return status

    async def group_gone(self, limit_s: float = KILL_LIMIT_S) -> None:
        """After its exit: until no process is left in its group. TimeoutError at the limit."""
        deadline = time.monotonic() + limit_s
        while group_exists(self.pid) and group_members(self.pid):
            signal_group(self.pid, signal.SIGKILL)
            reap_adopted()
            if time.monotonic() > deadline:
                raise TimeoutError(f"processes of group {self.pid} do not end")
            await asyncio.sleep(_POLL_S)


def environment_of(command: Command) -> dict[str, str]:
    """The environment that a process of this command gets, without the readiness pipe."""
    environment = {name: value for name, value in os.environ.items() if name not in command.environment}
    environment.pop(READY_FD_VARIABLE, None)
    # What processes are found by stands first: where there is little room (see process_image) it is kept.
    environment = {name: value for name, value in command.environment.items() if value is not None} | environment
    environment[PARENT_PID_VARIABLE] = str(os.getpid())
    return environment


def _wait_for(pid: int) -> int:
    try:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    except ChildProcessError:
        return -signal.SIGKILL


def describe_exit(status: int) -> str:
    """`exit status 1` or `killed by SIGKILL`."""
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"


def last_lines(log_file: Path | None, count: int = 3, limit_bytes: int = 8192) -> list[str]:
    """The end of a log file; [] if there is none."""
    if log_file is None:
        return []
    try:
        with open(log_file, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - limit_bytes))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return []
    return [line for line in lines if line.strip()][-count:]
