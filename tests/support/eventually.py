"""Waits for the world to become as expected; the only way a test waits."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

T = TypeVar("T")


async def remains(check: Callable[[], bool], *, for_s: float, every_s: float = 0.01) -> None:
    """Asserts that `check` holds now and for the whole time: for what must not happen."""
    deadline = time.monotonic() + for_s
    while True:
        assert check(), f"no longer so after {for_s - (deadline - time.monotonic()):.3f} s"
        if time.monotonic() >= deadline:
            return
        await asyncio.sleep(every_s)


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
