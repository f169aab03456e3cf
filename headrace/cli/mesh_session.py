"""A mesh in the foreground of a terminal: signals, ordered stop, exit status. `headrace up` and the demo run in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable

from headrace.cli.invocation import INTERRUPTED
from headrace.cli.mesh import Mesh
from headrace.cli.mesh_plan import MeshOptions
from headrace.cli.terminal import waiting
from headrace.edge.child_process import adopt_orphans
from headrace.edge.data_directory import locate
from headrace.edge.parent_death import tie_to_parent
from headrace.edge.structured_log import configure_logging

BODY_PATIENCE_S = 0.2

Body = Callable[[Mesh, asyncio.Event], Awaitable[int]]


def run_in_mesh(options: MeshOptions, body: Body, *, patience_s: float = BODY_PATIENCE_S) -> int:
    """Starts a mesh, awaits `body(mesh, stopping)`, stops the mesh; answers the exit status.

    The first Ctrl-C, SIGTERM or hang-up sets `stopping`: a body that waits for it returns its status; one that is still
    at work after `patience_s` is cancelled, and the status is 130. The second one ends everything at once.
    HeadraceError when the mesh cannot be started.
    """
    tie_to_parent()
    directory = locate(options.data)
    directory.create()
    configure_logging("up", options.log_level, file=directory.logs / "up.log")
    with asyncio.Runner() as runner:
        return runner.run(_run(options, body, patience_s))


async def _run(options: MeshOptions, body: Body, patience_s: float) -> int:
    mesh = Mesh(options, on_notice=lambda line: print(f"headrace: {line}", file=sys.stderr, flush=True))
    stopping = asyncio.Event()

    on_interrupt(stopping, at_second=mesh.kill)
    loop = asyncio.get_running_loop()
    working = loop.create_task(_start_and_work(mesh, body, stopping))
    asked = loop.create_task(stopping.wait())
    try:
        await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait([working], timeout=None if working.done() else patience_s)
        if not working.done():
            working.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await working
            return INTERRUPTED
        return working.result()
    finally:
        asked.cancel()
        await mesh.stop()


def on_interrupt(stopping: asyncio.Event, *, at_second: Callable[[], None]) -> None:
    """Ctrl-C, SIGTERM and hang-up set `stopping`; the second one calls `at_second` and ends the process."""

    def interrupted() -> None:
        if stopping.is_set():
            at_second()
            os._exit(INTERRUPTED)
        stopping.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            loop.add_signal_handler(number, interrupted)


async def _start_and_work(mesh: Mesh, body: Body, stopping: asyncio.Event) -> int:
    adopt_orphans()
    with waiting("starting a mesh"):
        await mesh.start()
    return await body(mesh, stopping)
