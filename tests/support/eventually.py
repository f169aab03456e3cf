"""Waits for the world to become as expected; the only way a test waits."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


@overload
async def eventually(check: Callable[[], Awaitable[T]], *, within_s: float = 10.0, every_s: float = 0.02) -> T: ...
@overload
async def eventually(check: Callable[[], T], *, within_s: float = 10.0, every_s: float = 0.02) -> T: ...
async def eventually(check: Callable[[], Any], *, within_s: float = 10.0, every_s: float = 0.02) -> Any:
    """Repeats `check` until it neither raises AssertionError nor answers a falsy value; answers its value."""
    deadline = time.monotonic() + within_s
    while True:
        problem: str
        try:
            value = check()
            if inspect.isawaitable(value):
                value = await value
            if value:
                return value
            problem = f"still {value!r}"
        except AssertionError as error:
            problem = str(error) or "assertion failed"
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {within_s} s: {problem}")
        await asyncio.sleep(every_s)
