"""Ends tasks, also those that a single cancellation does not end.

`asyncio.wait_for` of Python before 3.12, which nats-py uses, loses a cancellation that comes in the moment in which
what it waits for is done: it answers the result, and the task goes on as if nobody had asked it to end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from headrace.edge.structured_log import get_logger

log = get_logger(__name__)

# How long a task may take to clean up before it is asked again.
AGAIN_S = 0.5
END_LIMIT_S = 10.0


async def end_tasks(tasks: Iterable[asyncio.Future[Any]], *, limit_s: float = END_LIMIT_S) -> None:
    """Cancels them, again and again, until all have ended, however they end; what has not after `limit_s` seconds
    is named in the log and left behind. Never raises but for the caller's own cancellation."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    open_tasks = set(tasks)
    while open_tasks and loop.time() < deadline:
        for task in open_tasks:
            task.cancel()
        done, open_tasks = await asyncio.wait(open_tasks, timeout=min(AGAIN_S, limit_s))
        for task in done:
            if not task.cancelled():
                task.exception()  # else it would be reported as never looked at
    for task in open_tasks:
        log.error("a task does not end", task=task.get_name() if isinstance(task, asyncio.Task) else repr(task)[:200])
