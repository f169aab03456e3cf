"""The loop behind `headrace dev`: run the file, wait for a save, run it again; at the end stop what was started."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.sample_call import sample_call
from headrace.client import AsyncClient
from headrace.client.run import RanFlow
from headrace.edge.folder_watch import FolderWatch
from headrace.model.errors import HeadraceError, NotFound
from headrace.wire.flow_file import FlowFile, load_flow_file

if TYPE_CHECKING:
    from headrace.cli.dev_report import DevReport

# How long a new deployment may take to get ready; a save meanwhile gives it up at once.
READY_S = 60.0
STOP_S = 5.0
LOG_PAUSE_S = 1.0


class DevLoop:
    """One flow file and what a session with it has done. `run` it once."""

    def __init__(self, file: Path, report: DevReport, *, show_logs: bool = True) -> None:
        """NotFound when there is no such file; what is wrong inside is told and waited for."""
        self.report = report
        self._file = file / "flow.yaml" if file.is_dir() else file
        if not self._file.is_file():
            load_flow_file(self._file)  # says best what is missing
        self._show_logs = show_logs
        self._folders: list[Path] = []
        self._flow = ""
        self._met: set[str] = set()
        self._started: list[str] = []
        self._ran_before = False
        self._try_it = ""
        self._logs: asyncio.Task[None] | None = None
        self._followed = ""

    async def run(self, address: str, user: str, stopping: asyncio.Event) -> int:
        """Until `stopping` is set; answers the exit status. Unavailable where no mesh answers at the beginning."""
        async with AsyncClient(address, user=user) as client:
            await client.server_info()
            self._read()
            watch = FolderWatch(lambda: [self._file, *self._folders])
            asked: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
            changed: asyncio.Future[Any] | None = None
            turn = self._begin_turn(client, stopping)
            try:
                while not stopping.is_set():
                    changed = changed or asyncio.ensure_future(watch.changed())
                    await asyncio.wait([asked, changed], return_when=asyncio.FIRST_COMPLETED)
                    if not changed.done():
                        break
                    self.report.saved(changed.result())
                    changed = None
                    await self._give_up(client, turn)
                    turn = self._begin_turn(client, stopping)
            finally:
                for task in (asked, changed, self._logs):
                    await _end(task)
                try:
                    await _end(turn)
                finally:
                    await self._stop_what_it_started(client)
        return 0

    def _begin_turn(self, client: AsyncClient, stopping: asyncio.Event) -> asyncio.Future[Any]:
        """One that fails otherwise than it may ends the session, with its error."""

        def look(turn: asyncio.Future[Any]) -> None:
            if not turn.cancelled() and turn.exception() is not None:
                stopping.set()

        turn = asyncio.ensure_future(self._turn(client))
        turn.add_done_callback(look)
        return turn

    def _read(self) -> FlowFile | None:
        """The file as it is now; what it names is watched from here on. None where it is wrong, which is told."""
        try:
            loaded = load_flow_file(self._file)
        except HeadraceError as error:
            self.report.failed(error, self._ran_before)
            return None
        self._flow = loaded.name
        self._folders = list(dict.fromkeys(loaded.folders.values()))
        return loaded

    async def _turn(self, client: AsyncClient) -> None:
        """Brings the file as it is now to run; errors are told."""
        began = time.monotonic()
        loaded = self._read()
        if loaded is None:
            return
        try:
            if loaded.name not in self._met:  # the first turn, or the file was given another name
                if await _is_at_rest(client, loaded.name):
                    self._started.append(loaded.name)
                self._met.add(loaded.name)
            ran = await self._run(client, loaded)
            call = await sample_call(client, loaded, ran.status)
        except HeadraceError as error:
            self.report.failed(error, self._ran_before)
            return
        self._ran_before = True
        self.report.ran(ran, time.monotonic() - began, call if call != self._try_it else "")
        self._try_it = call
        if self._show_logs and self._followed != loaded.name:
            await _end(self._logs)
            self._followed = loaded.name
            self._logs = asyncio.ensure_future(self._follow(client, loaded.name))

    async def _run(self, client: AsyncClient, loaded: FlowFile) -> RanFlow:
        try:
            return await client.run(loaded, pushed=self.report.pushed, timeout_s=READY_S)
        except HeadraceError as error:
            if error.reason != "NEEDS_RESTART":
                raise
        # Who edits cares for the new code, not for the gap.
        return await client.run(loaded, pushed=self.report.pushed, timeout_s=READY_S, strategy="RESTART")

    async def _give_up(self, client: AsyncClient, turn: asyncio.Future[Any]) -> None:
        """Ends a turn that a newer save has overtaken, and what it has begun in the mesh."""
        if turn.done():
            return
        await _end(turn)
        with contextlib.suppress(HeadraceError):
            running = (await client.get_flow(self._flow)).running_operation
            if running:
                await client.cancel_operation(running)
                await client.wait_operation(await client.get_operation(running), timeout_s=STOP_S)

    async def _follow(self, client: AsyncClient, flow: str) -> None:
        """Log lines from now on; begins again where the stream broke."""
        since = time.time()
        while True:
            with contextlib.suppress(HeadraceError):
                async with aclosing(client.tail_logs(flow, lines=20, follow=True)) as lines:
                    async for line in lines:
                        moment = line.time.ToNanoseconds() / 1e9
                        if moment > since:
                            since = moment
                            self.report.log_line(line)
            await asyncio.sleep(LOG_PAUSE_S)

    async def _stop_what_it_started(self, client: AsyncClient) -> None:
        for flow in sorted(self._met - {*self._started}):
            self.report.left(f"{flow} ran before, and runs on")
        for flow in self._started:
            try:
                if not await _is_at_rest(client, flow):
                    await client.stop(flow, timeout_s=STOP_S)
                self.report.left(f"{flow}: STOPPED")
            except HeadraceError as error:
                self.report.left(f"{flow} is not stopped yet: {error.message}")


async def _end(task: asyncio.Future[Any] | None) -> None:
    """Cancels a task and waits until it is over."""
    if task is None:
        return
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError, HeadraceError):
        await task


async def _is_at_rest(client: AsyncClient, flow: str) -> bool:
    """Whether the flow is stopped, or not there at all."""
    try:
        return (await client.get_flow(flow)).state == flow_pb2.FLOW_STATE_STOPPED
    except NotFound:
        return True
