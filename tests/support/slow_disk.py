"""Makes a process's disk slow, or stand still, for a while: strace delays its writes and syncs.

async with slow_disk(pid, delay_s=0.03): ...
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

CALLS = "pwrite64,fsync,fdatasync"
ATTACH_LIMIT_S = 10.0


@contextlib.asynccontextmanager
async def slow_disk(pid: int, *, delay_s: float, calls: str = CALLS) -> AsyncIterator[None]:
    """Each of the calls takes so much longer; at the end the process goes on as fast as ever."""
    delay = f"inject={calls}:delay_enter={int(delay_s * 1e6)}"
    tracer = await asyncio.create_subprocess_exec(
        "strace", "-f", "-p", str(pid), "-e", f"trace={calls}", "-e", delay, "-o", os.devnull,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert tracer.stderr is not None
    try:
        async with asyncio.timeout(ATTACH_LIMIT_S):
            said = await tracer.stderr.readline()
        assert b"attached" in said, said
        drain = asyncio.create_task(tracer.stderr.read())
        yield
    finally:
        if tracer.returncode is None:
            tracer.send_signal(signal.SIGINT)  # strace lets go of the process
        async with asyncio.timeout(ATTACH_LIMIT_S):
            await tracer.wait()
            await drain
