"""Processes and the way between them: calls to other processes all go through a `Link`, which has the network's faults,
and ends or holds with its process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import grpc

from headrace.model.errors import HeadraceError
from tests.simulation.faults import LONGEST_LATE_S, Network

T = TypeVar("T")
Broken = grpc.aio.AioRpcError
MISTAKES = (TypeError, AttributeError, NameError)


@dataclass
class Host:
    """A process that serves calls: while it is down they fail at once. Owns the tasks of its calls."""

    name: str
    server: Any = None
    _tasks: dict[asyncio.Task[Any], None] = field(default_factory=dict)

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._over)
        return task

    def _over(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task, None)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, MISTAKES):
            # What crosses the network looks like a server that went away: without this a whole simulation in which
            # nothing works, because what is simulated has changed, would break no law.
            told = {"message": f"a mistake in {self.name}: {error!r}", "exception": error, "task": task}
            asyncio.get_running_loop().call_exception_handler(told)

    def kill(self) -> None:
        self.server = None
        for task in list(self._tasks):
            task.cancel()


def broken(details: str, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Broken:
    return Broken(code, grpc.aio.Metadata(), grpc.aio.Metadata(), details)


def _as_status(error: BaseException) -> BaseException:
    if isinstance(error, HeadraceError):
        return broken(f"{error.reason}: {error}", grpc.StatusCode[error.code])
    if isinstance(error, asyncio.CancelledError):
        return broken("the server went away")
    return error


class Link:
    """One process's way to all others. A dead one neither sends nor hears; a held one (the process was stopped
    by SIGSTOP, or cut off) sends and hears nothing until it is released, and then everything."""

    def __init__(self, network: Network, name: str) -> None:
        self.network = network
        self.name = name
        self.dead = False
        self.held_until = 0.0
        self.calls = 0
        self.crash_at = 0
        self.hold_at = 0
        self.hold_s = 0.0
        self.on_crash: Callable[[], None] = lambda: None
        self._streams: dict[StreamCall, None] = {}

    def hold(self, seconds: float) -> None:
        self.held_until = asyncio.get_running_loop().time() + seconds

    def _wait(self) -> float:
        """How long something sent now takes."""
        held = self.held_until - asyncio.get_running_loop().time()
        return self.network.delay() + max(0.0, held)

    async def call(self, do: Callable[[], T], timeout_s: float, *, changes: bool = False) -> T:
        """Has `do` done at the other side; TimeoutError when nothing comes back in time."""

        def begin(answer: Callable[[Any, BaseException | None], None]) -> None:
            try:
                result = do()
            except Exception as error:
                answer(None, error)
            else:
                answer(result, None)

        return await self._exchange(begin, timeout_s, changes=changes)  # type: ignore[no-any-return]

    async def ask(self, host: Host, do: Callable[[Any], Coroutine[Any, Any, T]], timeout_s: float) -> T:
        """A gRPC call to a process."""

        def begin(answer: Callable[[Any, BaseException | None], None]) -> None:
            if host.server is None:
                answer(None, broken(f"{host.name} is down"))
                return
            task = host.spawn(do(host.server))

            def done(ended: asyncio.Task[T]) -> None:
                if ended.cancelled():
                    answer(None, broken("the server went away"))
                elif (error := ended.exception()) is not None:
                    answer(None, _as_status(error))
                else:
                    answer(ended.result(), None)

            task.add_done_callback(done)

        try:
            return await self._exchange(begin, timeout_s, changes=True)  # type: ignore[no-any-return]
        except TimeoutError:
            raise broken("deadline exceeded", grpc.StatusCode.DEADLINE_EXCEEDED) from None

    async def _exchange(self, begin: Callable[..., None], timeout_s: float, *, changes: bool) -> Any:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        if self.dead:
            return await future
        network, faults = self.network, self.network.faults

        def settle(result: Any, error: BaseException | None) -> None:
            wait = self.held_until - loop.time()
            if wait > 0:
                loop.call_later(wait, settle, result, error)
            elif not future.done() and not self.dead:
                if error is None:
                    future.set_result(result)
                else:
                    future.set_exception(error)

        def answer(result: Any, error: BaseException | None) -> None:
            if not network.happens(faults.unanswered):
                loop.call_later(network.delay(), settle, result, error)

        self.calls += 1
        crashes = self.calls == self.crash_at
        if self.calls == self.hold_at:
            self.hold(self.hold_s)
        late_s = network.rng.uniform(0.1, LONGEST_LATE_S) if changes and network.happens(faults.stale) else 0.0
        if not network.happens(faults.lost) and not (crashes and network.rng.random() < 0.3):
            loop.call_later(self._wait() + late_s, begin, answer)
        if network.happens(faults.repeated):
            loop.call_later(self._wait(), begin, answer)
        if crashes:
            self.on_crash()
            return await future
        expiry = loop.call_later(timeout_s, lambda: None if future.done() else future.set_exception(TimeoutError()))
        try:
            return await future
        finally:
            expiry.cancel()

    def channel(self, host: Host | None) -> Channel:
        return Channel(self, host)

    def open_stream(self, stream: StreamCall) -> None:
        self._streams[stream] = None

    def close_stream(self, stream: StreamCall) -> None:
        self._streams.pop(stream, None)

    def break_streams(self) -> None:
        for stream in list(self._streams):
            stream.fail(broken("connection lost"))


class StreamCall:
    """A server stream as a gRPC client sees it: in order, late at most, ended by an error when it breaks."""

    def __init__(self, link: Link, host: Host | None, begin: Callable[[Any], AsyncGenerator[Any, None]]) -> None:
        self._link = link
        self._queue: asyncio.Queue[Any] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._last = 0.0
        self._ended = link.dead
        self._task: asyncio.Task[None] | None = None
        link.open_stream(self)
        if host is None or host.server is None:
            self._loop.call_later(link.network.delay(), self.fail, broken("connection refused"))
        else:
            self._task = host.spawn(self._pump(begin(host.server)))
            self._task.add_done_callback(self._over)

    async def _pump(self, items: AsyncGenerator[Any, None]) -> None:
        try:
            async for item in items:
                now = self._loop.time()
                arrival = now + self._link.network.delay() + max(0.0, self._link.held_until - now)
                self._last = max(self._last + 1e-6, arrival)
                self._loop.call_at(self._last, self._arrive, item)
        finally:
            await items.aclose()

    def _arrive(self, item: Any) -> None:
        held = self._link.held_until - self._loop.time()
        if held > 0:
            self._last = max(self._last + 1e-6, self._link.held_until)
            self._loop.call_at(self._last, self._arrive, item)
        elif not self._ended:
            self._queue.put_nowait(item)

    def _over(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        self.fail(_as_status(error) if error is not None else broken("stream ended"))

    def fail(self, error: BaseException) -> None:
        if not self._ended and not self._link.dead:
            self._ended = True
            self._queue.put_nowait(error)

    async def read(self) -> Any:
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def __aiter__(self) -> StreamCall:
        return self

    async def __anext__(self) -> Any:
        return await self.read()

    def cancel(self) -> None:
        self._ended = True
        self._link.close_stream(self)
        if self._task is not None:
            self._task.cancel()


class Channel:
    """What generated gRPC stubs need of a channel."""

    def __init__(self, link: Link, host: Host | None) -> None:
        self._link = link
        self._host = host

    def unary_unary(self, path: str, **_: Any) -> Callable[..., Any]:
        method = path.rpartition("/")[2]

        def call(request: Any, timeout: float = 10.0) -> Any:
            host = self._host or Host("nobody")
            return self._link.ask(host, lambda server: getattr(server, method)(request, None), timeout)

        return call

    def unary_stream(self, path: str, **_: Any) -> Callable[..., StreamCall]:
        method = path.rpartition("/")[2]
        return lambda request: StreamCall(self._link, self._host, lambda server: getattr(server, method)(request, None))

    stream_unary = stream_stream = unary_unary

    async def close(self, grace: float | None = None) -> None:
        """Nothing is held."""
