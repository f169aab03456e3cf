"""Runs one service as one process: loop, signals, owned tasks, ordered and bounded stop.

This is the only place that starts background tasks for a process: a service gets the TaskGroup and gives
each of its loops to it. A loop that fails ends the process (its supervisor starts it again).
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import Protocol

from headrace.edge.parent_death import tie_to_parent
from headrace.edge.structured_log import configure_logging, get_logger

log = get_logger(__name__)


class Service(Protocol):
    """What a service's app.py offers."""

    async def start(self, tasks: asyncio.TaskGroup) -> None:
        """Connects, binds, starts loops; returns when it serves (and has reported ready)."""

    async def stop(self) -> None:
        """Stops in order: refuse new work, end streams, finish what is in flight, close connections."""


class StopRequested(Exception):
    """Ends the TaskGroup of a service that was asked to stop."""


async def serve(service: Service, *, stop_timeout_s: float, stop_event: asyncio.Event | None = None) -> int:
    """Runs until SIGTERM, SIGINT, `stop_event` or a failed loop; answers the exit status."""
    stopping = stop_event or asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with contextlib.suppress(NotImplementedError, RuntimeError):
            loop.add_signal_handler(number, stopping.set)
    status = 0
    try:
        async with asyncio.TaskGroup() as tasks:
            await service.start(tasks)
            await stopping.wait()
            await _stop(service, stop_timeout_s)
            raise StopRequested
    except* StopRequested:
        pass
    except* Exception as group:
        for error in group.exceptions:
            log.error("service failed", error=repr(error), exception_type=type(error).__name__)
        await _stop(service, stop_timeout_s)
        status = 1
    return status


async def _stop(service: Service, limit_s: float) -> None:
    try:
        async with asyncio.timeout(limit_s):
            await service.stop()
    except TimeoutError:
        log.error("stop took longer than its limit", limit_s=limit_s)
    except Exception as error:
        log.error("stop failed", error=repr(error))


def run_service(
    name: str,
    service: Service,
    *,
    log_level: str = "info",
    stop_timeout_s: float = 5.0,
    stop_event: asyncio.Event | None = None,
    death_signal: int = signal.SIGKILL,
) -> int:
    """Blocking entry point for `__main__`: ties to the parent, sets up logs and the loop, serves.

    `stop_event` lets the service itself ask for its stop; `death_signal` is what it gets when its parent dies."""
    tie_to_parent(death_signal=death_signal)
    configure_logging(name, log_level)
    runner = _loop_runner()
    try:
        return runner.run(serve(service, stop_timeout_s=stop_timeout_s, stop_event=stop_event))
    finally:
        runner.close()


def _loop_runner() -> asyncio.Runner:
    if sys.platform != "win32":
        with contextlib.suppress(ImportError):
            import uvloop

            return asyncio.Runner(loop_factory=uvloop.new_event_loop)
    return asyncio.Runner()
