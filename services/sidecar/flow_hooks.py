"""Runs the component's hooks of a flow's run: startup before its first message, shutdown after its last.

A record in the bucket of deployments says that startup has ended; it is looked for only where the component has a hook.
So a call that has ended is never repeated, whoever is killed afterwards; one whose process was killed in its midst is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import Conflict, HeadraceError, InvalidInput
from headrace.model.flow_hooks import HOOK_LIMIT_S, HookRecord, decode_hooks, encode_hooks, result_problem

if TYPE_CHECKING:
    from headrace.document_ports import Bucket
    from services.sidecar.component_process import ComponentProcess
    from services.sidecar.log_capture import LogCapture

log = get_logger(__name__)

# A component that dies so often while its hook runs is not asked again.
MAX_DEATHS = 3
RETRY_S = 0.5


class FlowHooks:
    """Of the one instance that runs them; each `on_change` is called when a hook has ended."""

    def __init__(self, bucket: Bucket, key: str, logs: LogCapture, *on_change: Callable[[], None]) -> None:
        self._bucket, self._key, self._logs, self._on_change = bucket, key, logs, on_change
        self._task: asyncio.Task[None] | None = None
        self._deaths = 0
        self._process: ComponentProcess | None = None
        self._concluding = False
        self._started = False
        self.concluded = False
        """It was told to conclude, and the shutdown hook has ended, or there is none."""

    def process_ready(self, process: ComponentProcess | None) -> None:
        """This process serves; None: none does at the moment."""
        self._process = process
        if process is not None and not (process.startup_hook or process.shutdown_hook):
            self._started = True
        self._go_on()

    def may_begin(self) -> bool:
        """Whether messages may come: the startup hook has ended, or there is none. Runs it where it has not."""
        process = self._process
        if not self._started and process is not None and self._idle:
            self._task = asyncio.create_task(self._start(process), name="startup hook")
        return self._started

    def conclude(self) -> None:
        """The deployment is over: runs the shutdown hook, unless it has ended before."""
        self._concluding = True
        self._go_on()

    def _go_on(self) -> None:
        process = self._process
        if not self._concluding or self.concluded or process is None or not self._idle:
            return
        self._task = asyncio.create_task(self._conclude(process), name="shutdown hook")

    async def close(self) -> None:
        """A hook that runs is left alone: it is called again by whoever takes over."""
        if self._task is not None:
            await end_tasks([self._task])

    @property
    def _idle(self) -> bool:
        return self._task is None or self._task.done()

    async def _start(self, process: ComponentProcess) -> None:
        found = await self._read()
        if found is None:
            result, error = "null", ""
            if process.startup_hook:
                try:
                    result = await _run_startup(process)
                except HeadraceError as failure:
                    if self._died(process):
                        return
                    error = self._told("startup", failure)
            record = HookRecord(result, error, shutdown=process.shutdown_hook)
            await self._insist(lambda: self._bucket.create(self._key, encode_hooks(record)))
        self._deaths, self._started = 0, True
        self._tell()

    async def _conclude(self, process: ComponentProcess) -> None:
        found = await self._read()
        from headrace.api.component.v1 import component_pb2

        if process.shutdown_hook and found is not None and found[0].to_conclude:
            error = ""
            try:
                request = component_pb2.ConcludeRequest(startup_json=found[0].startup_json)
                await process.ask("Conclude", request, HOOK_LIMIT_S)
            except HeadraceError as failure:
                if self._died(process):
                    return
                error = self._told("shutdown", failure)
            record = HookRecord(found[0].startup_json, found[0].startup_error, True, True, error)
            revision = found[1]
            await self._insist(lambda: self._bucket.update(self._key, encode_hooks(record), revision))
        self.concluded = True
        self._tell()

    def _tell(self) -> None:
        for changed in self._on_change:
            changed()

    def _died(self, process: ComponentProcess) -> bool:
        """The process ended while its hook ran; the next one is asked again, unless that came too often."""
        if process.running:
            return False
        self._deaths += 1
        return self._deaths < MAX_DEATHS

    def _told(self, what: str, failure: HeadraceError) -> str:
        self._logs.say("error", f"the {what} hook failed, which is ignored: {failure.message}", reason=failure.reason)
        return failure.message[:2000]

    async def _read(self) -> tuple[HookRecord, int] | None:
        while True:
            try:
                entry = await self._bucket.get(self._key)
            except HeadraceError as error:
                log.debug("hooks' record not read", error=str(error))
                await asyncio.sleep(RETRY_S)
                continue
            return (decode_hooks(entry.value), entry.revision) if entry is not None and entry.value else None

    async def _insist(self, write: Callable[[], Awaitable[int]]) -> None:
        """Until it is written; somebody else's record counts as well."""
        while True:
            try:
                await write()
                return
            except Conflict:
                return
            except HeadraceError as error:
                log.debug("hooks' record not written", error=str(error))
                await asyncio.sleep(RETRY_S)


async def _run_startup(process: ComponentProcess) -> str:
    """What the startup hook returned, as JSON text that can be kept."""
    from headrace.api.component.v1 import component_pb2

    answer = await process.ask("Startup", component_pb2.StartupRequest(), HOOK_LIMIT_S)
    result = str(answer.result_json or "null")
    if problem := result_problem(result):
        raise InvalidInput(f"its result {problem}", reason="STARTUP_RESULT")
    return result
