"""One unary call: a deadline for all its attempts together, retries of what cannot have done harm.

Only UNAVAILABLE is retried, at most five attempts in all, with a doubling delay (or the one that the mesh asks for).
A call that changes something is retried with the same request, hence with the same `request_id`, which the mesh does
once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc

from headrace.client.errors import error_of_call
from headrace.model.errors import HeadraceError, Unavailable

MAX_ATTEMPTS = 5
FIRST_DELAY_S = 0.1
MAX_DELAY_S = 1.0
ATTEMPTS_KEY = "attempts"

Answer = TypeVar("Answer")


async def attempt(call: Callable[[float], Awaitable[Answer]], *, address: str, timeout_s: float) -> Answer:
    """Runs `call(remaining_s)` until it answers, fails for good, or attempts or time are used up.

    The error raised says in `metadata["attempts"]` how often it was tried.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    delay = FIRST_DELAY_S
    for number in range(1, MAX_ATTEMPTS + 1):
        try:
            return await call(max(0.001, deadline - loop.time()))
        except grpc.aio.AioRpcError as failure:
            error = error_of_call(failure, address)
        error.metadata[ATTEMPTS_KEY] = str(number)
        delay = max(delay, _asked_for_s(error))
        if not isinstance(error, Unavailable) or number == MAX_ATTEMPTS or loop.time() + delay >= deadline:
            raise error
        await asyncio.sleep(delay * random.uniform(1.0, 1.2))  # noqa: S311  (jitter)
        delay = min(delay * 2, MAX_DELAY_S)
    raise AssertionError("unreachable")


def _asked_for_s(error: HeadraceError) -> float:
    """How long the mesh says to wait before another attempt; 0 where it does not say."""
    told = error.metadata.get("retry_after_ms", "")
    return int(told) / 1000 if told.isdigit() else 0.0
