"""Runs an asynchronous harness for a test that is not asynchronous: one loop, in one thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

_T = TypeVar("_T")
_Face = TypeVar("_Face")

CALL_LIMIT_S = 60.0


class LoopThread:
    """`run` blocks until a coroutine is done, at most a minute; `close` ends the thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="headrace-harness", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(CALL_LIMIT_S)
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(CALL_LIMIT_S)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class TwoFacedHarness(Generic[_Face]):
    """`async with` runs `start` and `stop` on the test's own loop and gives the harness; `with` runs them on a
    loop in a thread and gives the blocking face."""

    _loop_thread: LoopThread | None = None

    async def start(self) -> None:
        raise NotImplementedError

    async def stop(self) -> None:
        raise NotImplementedError

    def _blocking(self, loop_thread: LoopThread) -> _Face:
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> _Face:
        self._loop_thread = LoopThread()
        try:
            self._loop_thread.run(self.start())
        except BaseException:
            self._loop_thread.close()
            raise
        return self._blocking(self._loop_thread)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._loop_thread is not None
        try:
            self._loop_thread.run(self.stop())
        finally:
            self._loop_thread.close()
