"""Has outputs evaluated by the process beside the sidecar, in order, each within its limit, whatever becomes of it.

The process takes what is sent one after the other, so the oldest job without an answer is the one in work. Over its
limit it is given up and the process killed; the rest is sent to the next one. A process that ends by itself is started
anew, and a job that was in work at two such ends is given up too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from headrace.edge.child_process import describe_exit, own_module
from headrace.edge.key_ring import without_keys
from headrace.edge.parent_death import PARENT_PID_VARIABLE
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks

log = get_logger(__name__)

MODULE = "services.sidecar.expression_worker"
CPU_LIMIT_S = 2.0
ANSWER_LIMIT_S = 60.0
"""Processor time of a job in work, and time on the clock: what is over one of them is ended with its process. That
itself stops an evaluation after a second of processor time; this is for what does not let itself be stopped."""
LOOK_S = 0.5
START_LIMIT_S = 20.0
START_AGAIN_S = 0.5
MAX_SENT, MAX_SENT_BYTES = 64, 2 * 1024 * 1024
MAX_ENDS = 2

Done = Callable[[str, list[Any] | None], None]
"""Gets the error, or a body per edge."""

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


@dataclass(slots=True, eq=False)
class _Job:
    message: tuple[Any, ...]
    size: int
    done: Done
    ends: int = 0


class Evaluator:
    """Bounded by its callers, who hold what they ask about. `tasks` owns its one task, `close` ends it."""

    def __init__(self, edges: Sequence[tuple[str, str, str]], tasks: asyncio.TaskGroup) -> None:
        self._edges = list(edges)
        self._waiting: deque[_Job] = deque()
        self._sent: deque[_Job] = deque()
        self._sent_bytes = 0
        self._heard_at = 0.0
        self._process: asyncio.subprocess.Process | None = None
        self._ready = False
        self._gave_up = False
        self._wake = asyncio.Event()
        self._closed = False
        self._task = tasks.create_task(self._run(), name="expressions")

    @property
    def pid(self) -> int:
        """Of the process; 0 while there is none."""
        return self._process.pid if self._process is not None else 0

    def evaluate(self, message: tuple[Any, ...], size: int, done: Done) -> None:
        """`message` as `EdgeProgram.route` takes it, with `size` bytes; `done` is called later, in the order of the
        calls, or never after `close`."""
        self._waiting.append(_Job(message, size, done))
        self._send()

    def close(self) -> None:
        """Ends the process; nothing more is called."""
        self._closed = True
        self._task.cancel()

    def _send(self) -> None:
        process = self._process
        if process is None or not self._ready or not self._waiting:
            return
        frame: list[Any] = []
        while self._waiting and len(self._sent) < MAX_SENT and (self._sent_bytes < MAX_SENT_BYTES or not self._sent):
            job = self._waiting.popleft()
            if not self._sent:
                self._heard_at = time.monotonic()
            self._sent.append(job)
            self._sent_bytes += job.size
            frame.append((len(frame), *job.message))
        if frame:
            assert process.stdin is not None
            _write(process.stdin, frame)
            self._wake.set()

    async def _run(self) -> None:
        while True:
            began = time.monotonic()
            try:
                await self._run_once()
            except OSError as error:
                log.error("the evaluator of expressions cannot be started", error=str(error))
            if time.monotonic() - began < START_AGAIN_S:
                await asyncio.sleep(START_AGAIN_S)

    async def _run_once(self) -> None:
        """One process, from its start to its end."""
        process = self._process = await asyncio.create_subprocess_exec(
            *own_module(MODULE),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={**without_keys(os.environ), PARENT_PID_VARIABLE: str(os.getpid())},
        )
        watch = asyncio.ensure_future(self._watch(process))
        try:
            assert process.stdin is not None
            _write(process.stdin, self._edges)
            await self._read(process)
        finally:
            self._ready = False
            self._process = None
            await end_tasks([watch])
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            status = await process.wait()
            if not self._closed:
                self._back(status)

    async def _read(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(START_LIMIT_S):
                await _frame(process.stdout)
            self._ready = True
            self._send()
            while True:
                for _, error, bodies in await _frame(process.stdout):
                    job = self._sent.popleft()
                    self._sent_bytes -= job.size
                    self._heard_at = time.monotonic()
                    job.done(error, bodies)
                self._send()
        except (asyncio.IncompleteReadError, TimeoutError, ConnectionError):
            return

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        """Kills the process when the job in work takes too long: of the processor's time, so that a machine that has
        none to give is not held against it."""
        job: _Job | None = None
        began_s = 0.0
        while True:
            if not self._sent:
                self._wake.clear()
                await self._wake.wait()
            used_s = _processor_s(process.pid)
            if self._sent and self._sent[0] is not job:
                job, began_s = self._sent[0], used_s
            over = time.monotonic() - self._heard_at > ANSWER_LIMIT_S
            if self._sent and (used_s - began_s > CPU_LIMIT_S or over):
                self._gave_up = True
                with contextlib.suppress(ProcessLookupError):
                    process.send_signal(signal.SIGKILL)
                return
            await asyncio.sleep(LOOK_S)

    def _back(self, status: int) -> None:
        """What was sent is sent again, but for the job that is to blame."""
        given_up, self._gave_up = self._gave_up, False
        blamed: tuple[_Job, str] | None = None
        if self._sent:
            first = self._sent[0]
            first.ends += 1
            log.warning("the evaluator of expressions ended", status=describe_exit(status), given_up=given_up)
            if given_up:
                blamed = (
                    first,
                    f"an expression took more than {CPU_LIMIT_S:g} s of processor time and could not be stopped",
                )
            elif first.ends >= MAX_ENDS:
                blamed = first, f"an expression ended its evaluator ({describe_exit(status)})"
            if blamed:
                self._sent.popleft()
        self._waiting.extendleft(reversed(self._sent))
        self._sent.clear()
        self._sent_bytes = 0
        if blamed:
            blamed[0].done(blamed[1], None)


async def _frame(stream: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await stream.readexactly(4), "little")
    return _unpack(await stream.readexactly(size))


def _write(stream: asyncio.StreamWriter, value: Any) -> None:
    raw = _pack(value)
    stream.write(len(raw).to_bytes(4, "little") + raw)


def _processor_s(pid: int) -> float:
    """Seconds of processor time that a process has had; 0 where it is gone."""
    with contextlib.suppress(OSError):
        return time.clock_gettime((~pid << 3) | 2)  # clock_getcpuclockid(3)
    return 0.0
