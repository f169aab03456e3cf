"""How a started process tells its parent that it serves, and where: one JSON line on an inherited pipe.

Event-driven on both sides: the parent waits on the pipe, so a child that dies first is seen at once.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping

READY_FD_VARIABLE = "HEADRACE_READY_FD"


def report_ready(facts: Mapping[str, object]) -> None:
    """Writes the line to the descriptor named by HEADRACE_READY_FD, once; does nothing without it."""
    descriptor = os.environ.pop(READY_FD_VARIABLE, "")
    if not descriptor:
        return
    with os.fdopen(int(descriptor), "w") as pipe:
        pipe.write(json.dumps({"pid": os.getpid(), **facts}) + "\n")


async def read_ready(descriptor: int, timeout_s: float) -> dict[str, object]:
    """Reads the line; ConnectionError if the child closed the pipe without it, TimeoutError past the limit.

    Takes ownership of the descriptor (the parent's read end).
    """
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=1 << 20)
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", buffering=0)
    )
    try:
        async with asyncio.timeout(timeout_s):
            line = await reader.readline()
    finally:
        transport.close()
    if not line.endswith(b"\n"):
        raise ConnectionError("the process ended before it was ready")
    facts = json.loads(line)
    assert isinstance(facts, dict)
    return facts
