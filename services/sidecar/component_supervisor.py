"""Keeps a step's component running: starts it, checks it, notices its end, starts it again with back-off.

A crash loop (five within a minute without one finished message) is told, but the tries go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError
from services.sidecar.component_calls import ComponentFailed
from services.sidecar.component_process import ComponentFacts, ComponentProcess
from services.sidecar.credentials import NO_CREDENTIAL
from services.sidecar.domain.crash_loop import HEALTHY_S, CrashRecord
from services.sidecar.domain.lifecycle import Happening
from services.sidecar.process_watch import ProcessWatch

if TYPE_CHECKING:
    from headrace.model.deployment import DeploymentPlan, StepPlan
    from headrace.ports import ComponentStream
    from services.sidecar.credentials import StepCredentials
    from services.sidecar.log_capture import LogCapture
    from services.sidecar.settings import Settings
    from services.sidecar.spare_component import SpareComponent

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: the unpacked bundle, its interpreter and its entry point."""

    bundle: Path
    python: Path
    entrypoint: str


@dataclass(frozen=True, slots=True)
class SupervisorEvents:
    """Who hears what. `lost` gets the cause as a phrase (`ended (exit status 1)`) and its reason, and answers whether
    one message is to blame; `failed` gets an error that is to be shown, once per failed start or crash loop;
    `recovered` follows it when the component works again. `busy` tells whether calls run; `spans` gets those of
    the component's own code, None where they go nowhere."""

    progress: Callable[[Happening], None]
    ready: Callable[[ComponentProcess, ComponentStream, ComponentFacts], None]
    lost: Callable[[str, str], bool]
    failed: Callable[[HeadraceError], None]
    recovered: Callable[[], None]
    events: Callable[[Sequence[Any]], None]
    busy: Callable[[], bool]
    spans: Callable[[Sequence[Any]], None] | None = None


class ComponentSupervisor:
    """Give `run` to a task; `stop` ends the component and makes `run` return. `program` is asked for before each
    start, and answers what was checked just then."""

    def __init__(
        self,
        settings: Settings,
        plan: DeploymentPlan,
        step: StepPlan,
        program: Callable[[], Awaitable[Program]],
        logs: LogCapture,
        events: SupervisorEvents,
        *,
        first: ComponentProcess | None = None,
        spare: SpareComponent | None = None,
        credentials: StepCredentials | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._plan = plan
        self._step = step
        self._program = program
        self._logs = logs
        logs.of(plan, step)
        self._events = events
        self._first = first
        self._spare = spare
        self._credentials = credentials
        self._clock = clock
        self._record = CrashRecord()
        self._process: ComponentProcess | None = first
        self._stopping = asyncio.Event()
        self._condemned = asyncio.Event()
        self._sentence = ("", "")
        self._blamed = False
        self._stopped = asyncio.Event()
        self._loop_told = False
        self._start_failure_told = False
        self._process_watch: ProcessWatch | None = None
        self.starts = 1 if first is not None else 0

    @property
    def pid(self) -> int:
        """Process id of the component; 0 while there is none."""
        return self._process.pid if self._process is not None and self._process.running else 0

    @property
    def process(self) -> ComponentProcess | None:
        """The component's process; None while there is none."""
        return self._process

    def finished_message(self) -> None:
        """A message was finished: no crash loop (any more)."""
        self._record.finished_message()
        if self._loop_told:
            self._recover()

    def work_came(self) -> None:
        """Something is held again: what the component uses is looked at closely."""
        if self._process_watch is not None:
            self._process_watch.work_came()

    def condemn(self, reason: str, cause: str) -> None:
        """Ends the present process and starts a new one; `cause` is a phrase after `the component`."""
        if not self._condemned.is_set() and self._process is not None:
            self._sentence = (reason, cause)
            self._condemned.set()

    async def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._stopping.is_set():
                try:
                    cause = await self._run_once()
                    error: HeadraceError | None = None
                except HeadraceError as failure:
                    cause, error = failure.message, failure
                finally:
                    await self._end_process()
                if self._stopping.is_set():
                    return
                await self._after_crash(cause, error)
        finally:
            self._stopped.set()

    async def stop(self, limit_s: float) -> None:
        """Shutdown call, SIGTERM, SIGKILL; returns when the component is gone (or the limit is over)."""
        self._stopping.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await self._stopped.wait()
        if self._process is not None:
            self._process.kill()

    async def _run_once(self) -> str:
        """One life of the component; answers how it ended."""
        self._blamed = False
        process = self._first or await self._spawn()
        self._first, self._process = None, process
        await self._unless_stopped(process.wait_for_socket())
        self._events.progress(Happening.STARTED)
        facts = await self._unless_stopped(process.handshake(self._step.function))
        on_spans = self._events.spans
        instance = self._settings.instance
        credential = self._credentials.present if self._credentials is not None else NO_CREDENTIAL
        begin = process.initialise(self._plan, self._step, instance, spans=on_spans is not None, credential=credential)
        await self._unless_stopped(begin)
        self._events.progress(Happening.INITIALISED)
        closed = asyncio.Event()
        cause: list[str] = []

        def on_closed(error: Exception) -> None:
            cause.append(str(error))
            closed.set()

        stream = await self._unless_stopped(process.open_stream(self._events.events, on_closed, on_spans))
        self._condemned.clear()
        self._record.started(self._clock())
        self._events.progress(Happening.CHECKED)
        self._events.ready(process, stream, facts)
        if self._start_failure_told:
            self._recover()
        try:
            return await self._watch(process, closed, cause)
        finally:
            reason = self._sentence[0] if self._condemned.is_set() else "COMPONENT_EXITED"
            self._blamed = self._events.lost(cause[0] if cause else "was stopped", reason)

    async def _watch(self, process: ComponentProcess, closed: asyncio.Event, cause: list[str]) -> str:
        awaited = (process.wait(), closed.wait(), self._stopping.wait(), self._condemned.wait(), self._guard(process))
        async with _first_of(*awaited) as tasks:
            exited = tasks[0]
            over = (exited.done, closed.is_set, self._stopping.is_set, self._condemned.is_set)
            timeout_s = HEALTHY_S if self._loop_told else None
            while not any(is_over() for is_over in over):
                await asyncio.wait(tasks[:4], return_when=asyncio.FIRST_COMPLETED, timeout=timeout_s)
                if self._loop_told and self._record.is_healthy(self._clock()):
                    self._recover()
                timeout_s = None
            if self._condemned.is_set():
                process.kill()
                cause[:] = [self._sentence[1]]
                return cause[0]
            if not exited.done() and closed.is_set():
                # Mostly the stream breaks because the process ends: say how it ended.
                await asyncio.wait({exited}, timeout=0.5)
            if exited.done():
                cause[:] = [f"ended ({exited.result()})"]
            return cause[0] if cause else "was stopped"

    async def _guard(self, process: ComponentProcess) -> None:
        """Condemns the process when it and what it started use more than they may."""
        self._process_watch = ProcessWatch(process.pid, self._settings.component_limits, self._events.busy)
        excess = await self._process_watch.run()
        self.condemn(excess.reason, excess.cause)

    async def _spawn(self) -> ComponentProcess:
        # What the component has done to its own folder must not run, neither here nor in its next process.
        program = await self._unless_stopped(self._program())
        self.starts += 1
        return ComponentProcess.spawn(
            self._settings,
            bundle=program.bundle,
            python=program.python,
            entrypoint=program.entrypoint,
            logs=self._logs,
            spare=self._spare,
        )

    async def _after_crash(self, cause: str, error: HeadraceError | None) -> None:
        now = self._clock()
        delay_s = min(self._record.crashed(now, blamed=self._blamed), self._settings.restart_delay_limit_s)
        log.warning("component is started again", cause=cause, delay_s=delay_s)
        self._logs.say("warning", f"the component {cause}; it is started again", delay_s=delay_s)
        if error is None and self._record.is_loop(now):
            tail = self._logs.last_lines[-1:]
            error = ComponentFailed(
                f"the component {cause}, for the fifth time within a minute without finishing a message"
                + (f": {tail[0].strip()}" if tail else ""),
                reason="COMPONENT_CRASH_LOOP",
                next_step="See the component's log; it is started again with back-off",
            )
            self._loop_told = True
        elif error is not None:
            self._start_failure_told = True
        if error is not None:
            self._events.failed(error)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(delay_s):
                await self._stopping.wait()

    def _recover(self) -> None:
        self._loop_told = self._start_failure_told = False
        self._events.recovered()

    async def _end_process(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            await process.end()

    async def _unless_stopped(self, work: Any) -> Any:
        """The result of a stage; a stop ends the stage."""
        async with _first_of(work, self._stopping.wait()) as (task, stopping):
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise ComponentFailed("the instance is being shut down", reason="SHUTTING_DOWN")


@contextlib.asynccontextmanager
async def _first_of(*work: Any) -> Any:
    """Tasks for the given awaitables, all ended at the exit."""
    tasks = [asyncio.ensure_future(item) for item in work]
    try:
        yield tasks
    finally:
        await end_tasks(tasks)
