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
        self._ran_before = False
        self._started_here = False
        self._try_it = ""
        self._logs: asyncio.Task[None] | None = None

    async def run(self, address: str, user: str, stopping: asyncio.Event) -> int:
        """Until `stopping` is set; answers the exit status. Unavailable where no mesh answers at the beginning."""
        async with AsyncClient(address, user=user) as client:
            await client.server_info()
            self._read()
            watch = FolderWatch(lambda: [self._file, *self._folders])
            asked: asyncio.Future[Any] = asyncio.ensure_future(stopping.wait())
            changed: asyncio.Future[Any] | None = None
            turn: asyncio.Future[Any] = asyncio.ensure_future(self._turn(client))
            try:
                while not stopping.is_set():
                    changed = changed or asyncio.ensure_future(watch.changed())
                    await asyncio.wait([asked, changed], return_when=asyncio.FIRST_COMPLETED)
                    if not changed.done():
                        break
                    self.report.saved(changed.result())
                    changed = None
                    await self._give_up(client, turn)
                    turn = asyncio.ensure_future(self._turn(client))
            finally:
                await self._leave(client, [turn, asked, *([changed] if changed else [])])
        return 0

    def _read(self) -> FlowFile | None:
        """The file as it is now; what it names is watched from here on. None where it is wrong, which is told."""
        try:
            loaded = load_flow_file(self._file)
        except HeadraceError as error:
            self.report.failed(error, self._ran_before)
            return None
        self._flow = self._flow or loaded.name
        self._folders = list(dict.fromkeys(loaded.folders.values()))
        return loaded

    async def _turn(self, client: AsyncClient) -> None:
        """Brings the file as it is now to run; errors are told."""
        began = time.monotonic()
        loaded = self._read()
        if loaded is None:
            return
        try:
            if not self._ran_before:
                self._started_here = await _is_at_rest(client, loaded.name)
            ran = await self._run(client, loaded)
            call = await sample_call(client, loaded, ran.status)
        except HeadraceError as error:
            self.report.failed(error, self._ran_before)
            return
        self._ran_before = True
        self.report.ran(ran, time.monotonic() - began, call if call != self._try_it else "")
        self._try_it = call
        if self._show_logs and (self._logs is None or self._logs.done()):
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
        turn.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await turn
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

    async def _leave(self, client: AsyncClient, tasks: list[asyncio.Future[Any]]) -> None:
        for task in [*tasks, *([self._logs] if self._logs else [])]:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, HeadraceError):
                await task
        if not self._started_here:
            if self._ran_before:
                self.report.left(f"{self._flow} ran before, and runs on")
            return
        try:
            await client.stop(self._flow, timeout_s=STOP_S)
            self.report.left(f"{self._flow}: STOPPED")
        except HeadraceError as error:
            self.report.left(f"{self._flow} is not stopped yet: {error.message}")


async def _is_at_rest(client: AsyncClient, flow: str) -> bool:
    """Whether the flow is stopped, or not there at all."""
    try:
        return (await client.get_flow(flow)).state == flow_pb2.FLOW_STATE_STOPPED
    except NotFound:
        return True
