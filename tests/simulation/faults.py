"""What goes wrong, drawn from the seed: how long a call takes, whether it or its answer is lost, comes late or
twice, which process stops when. Calls to the broker and to other processes all go through a `Link`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar

import grpc
import nats.errors

from headrace.model.errors import HeadraceError, Unavailable
from headrace.ports import Entry
from tests.support.memory_broker import MemoryBroker
from tests.support.memory_bucket import MemoryBucket
from tests.support.memory_stream import Answer

T = TypeVar("T")
Broken = grpc.aio.AioRpcError
LONGEST_LATE_S = 9.0
STALE = (0.0, 0.0, 0.1)
CHANGES = ("STREAM.UPDATE", "STREAM.PURGE", "CONSUMER.CREATE", "CONSUMER.DELETE", "CONSUMER.PAUSE")


MISTAKES = (TypeError, AttributeError, NameError)


@dataclass
class Faults:
    """Probabilities per call; all 0 once `heal` was called."""

    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    repeated: float = 0.0
    # Of calls that change streams, consumers or instances: they come when something newer was decided already.
    stale: float = 0.0

    @classmethod
    def draw(cls, rng: Random) -> Faults:
        """A third of the runs has no faults of calls, so that the others' faults are seen alone."""
        strength = rng.choice((0.0, 0.005, 0.03, 0.1))
        drawn = [strength * rng.random() for _ in range(4)] if strength else [0.0] * 4
        return cls(*drawn, stale=rng.choice(STALE))

    def heal(self) -> None:
        self.lost = self.unanswered = self.late = self.repeated = self.stale = 0.0


@dataclass
class Network:
    rng: Random
    faults: Faults

    def delay(self) -> float:
        rng = self.rng
        if self.faults.late and rng.random() < self.faults.late:
            return rng.uniform(0.01, LONGEST_LATE_S)
        return 0.0002 + rng.random() * 0.002

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability


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


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine that never waits."""
    try:
        work.send(None)
    except StopIteration as ended:
        return ended.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


class RemoteBucket:
    """A bucket over a link; errors as `KvBucket` raises them."""

    def __init__(self, link: Link, bucket: MemoryBucket, guard: Callable[[], None] = lambda: None) -> None:
        self._link = link
        self._bucket = bucket
        self._guard = guard

    async def _do(self, method: str, *arguments: Any) -> Any:
        try:
            return await self._link.call(lambda: at_once(getattr(self._bucket, method)(*arguments)), 5.0)
        except TimeoutError:
            raise Unavailable(f"no answer for bucket {self._bucket.name}", reason="BROKER_UNREACHABLE") from None

    async def get(self, key: str) -> Any:
        return await self._do("get", key)

    async def create(self, key: str, value: bytes) -> Any:
        self._guard()
        return await self._do("create", key, value)

    async def update(self, key: str, value: bytes, revision: int) -> Any:
        self._guard()
        return await self._do("update", key, value, revision)

    async def put(self, key: str, value: bytes) -> Any:
        self._guard()
        return await self._do("put", key, value)

    async def delete(self, key: str, revision: int | None = None) -> Any:
        self._guard()
        return await self._do("delete", key, revision)

    async def purge(self, key: str) -> Any:
        self._guard()
        return await self._do("purge", key)

    async def keys(self, pattern: str = ">") -> Any:
        return await self._do("keys", pattern)

    async def entries(self, pattern: str = ">") -> Any:
        return await self._do("entries", pattern)

    async def newest(self) -> Any:
        return await self._do("newest")

    async def watch(self, pattern: str = ">") -> AsyncGenerator[Entry | None, None]:
        """Changes come in order; some are never told."""
        network = self._link.network
        async for entry in self._bucket.watch(pattern):
            if entry is not None and network.happens(network.faults.lost):
                continue
            await asyncio.sleep(self._link._wait())  # tidy: pace
            yield entry


class RemoteBroker:
    """A connection's `publish` and `request` over a link. What is published goes with the next request, whole."""

    def __init__(self, link: Link, broker: MemoryBroker, *, cluster: bool = False) -> None:
        self._link = link
        self._broker = broker
        self._server_info = {"cluster": "simulated"} if cluster else {}
        self._written: list[tuple[str, bytes, dict[str, str] | None]] = []

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self._written.append((subject, payload, headers))

    async def request(
        self, subject: str, payload: bytes = b"", timeout: float = 5.0, *, headers: dict[str, str] | None = None
    ) -> Answer:
        written, self._written = self._written, []

        def arrive() -> Answer:
            for each in written:
                self._broker.answer(*each)
            return self._broker.answer(subject, payload, headers)

        try:
            changes = any(verb in subject for verb in CHANGES)
            return await self._link.call(arrive, timeout, changes=changes)
        except TimeoutError:
            raise nats.errors.TimeoutError from None
