"""A lock between processes of one machine: flock on a file, waited for with a limit."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator
from pathlib import Path

from headrace.model.errors import DeadlineExceeded

# flock has no asynchronous form; who waits here waits for a download or a build of many milliseconds.
_LOOK_AGAIN_S = 0.02


@contextlib.asynccontextmanager
async def locked(path: Path, timeout_s: float) -> AsyncIterator[None]:
    """Holds the lock; DeadlineExceeded when somebody else holds it for longer than the limit.

    The kernel frees it when the holder dies. The file stays: removing it would let two holders in.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if asyncio.get_running_loop().time() >= deadline:
                    raise DeadlineExceeded(
                        f"{path} was held by another process for {timeout_s:g} s",
                        reason="CACHE_BUSY",
                        next_step="See what the other sidecars of this machine are building",
                    ) from None
                await asyncio.sleep(_LOOK_AGAIN_S)
        yield
    finally:
        os.close(descriptor)
