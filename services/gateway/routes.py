"""The gateway's view of the flows: a copy of the routes bucket, kept fresh by watching and re-reading."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

import msgspec
import nats.errors

from headrace.edge.kv_bucket import Entry, KvBucket
from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model.errors import HeadraceError
from headrace.model.route import Route, decode_route

log = get_logger(__name__)

LOOK_S = 3.0
RETRY_S = 0.2
READ_LIMIT_S = 1.0


class RouteTable:
    """Flow name → Route.

    One watch at a time. Every `LOOK_S` it is held against the bucket's newest revision, which costs one request
    however many routes there are; a watch that has missed something (the broker restarted) is begun again, and
    begins with all present entries.
    """

    def __init__(self, bucket: KvBucket) -> None:
        self._bucket = bucket
        self._routes: dict[str, Route] = {}
        self._complete = asyncio.Event()
        self._seen = 0
        self._readings: dict[str, asyncio.Task[None]] = {}

    def find(self, flow: str) -> Route | None:
        return self._routes.get(flow)

    async def read_again(self, flow: str) -> Route | None:
        """The route as the bucket has it now, where the watch may be late; all who ask at the same time share one
        read. What is known already where the broker does not answer at once."""
        reading = self._readings.get(flow)
        if reading is None:
            reading = self._readings[flow] = asyncio.create_task(self._read(flow), name=f"route {flow}")
            reading.add_done_callback(lambda _: self._readings.pop(flow, None))
        await asyncio.wait([reading], timeout=READ_LIMIT_S)
        return self.find(flow)

    async def _read(self, flow: str) -> None:
        try:
            entry = await self._bucket.get(flow)
        except (HeadraceError, nats.errors.Error, TimeoutError) as error:
            log.debug("a route cannot be read", flow=flow, error=repr(error))
            return
        if entry is None:
            self._routes.pop(flow, None)
        else:
            _apply(entry, self._routes)

    async def wait_until_read(self, timeout_s: float) -> None:
        """Returns when the bucket has been read once; TimeoutError past the limit."""
        async with asyncio.timeout(timeout_s):
            await self._complete.wait()

    async def follow(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                await self._watch_until_behind()
            except (HeadraceError, nats.errors.Error, TimeoutError) as error:
                log.debug("routes cannot be read", error=repr(error))
                await asyncio.sleep(RETRY_S)

    async def _watch_until_behind(self) -> None:
        self._seen = await self._bucket.newest()  # whatever the watch begins with is as new as that
        watch = asyncio.ensure_future(self._watch_once())
        try:
            while not watch.done():
                await asyncio.wait([watch], timeout=LOOK_S)
                if watch.done() or not await self._is_behind():
                    continue
                await asyncio.wait([watch], timeout=RETRY_S)  # it may just be on its way
                if await self._is_behind():
                    return
            watch.result()
        finally:
            await end_tasks([watch])

    async def _is_behind(self) -> bool:
        return await self._bucket.newest() != self._seen

    async def _watch_once(self) -> None:
        fresh: dict[str, Route] = {}
        reading = True
        async with contextlib.aclosing(self._bucket.watch()) as watch:
            async for entry in watch:
                if entry is None:
                    self._routes = fresh
                    reading = False
                    self._complete.set()
                    continue
                self._seen = max(self._seen, entry.revision)
                _apply(entry, fresh)
                if not reading:
                    log.info("route changed", flow=entry.key, state=_state(fresh, entry.key))


def _apply(entry: Entry, routes: dict[str, Route]) -> None:
    if entry.value is None:
        routes.pop(entry.key, None)
        return
    try:
        route = decode_route(entry.value)
    except msgspec.DecodeError as error:
        log.error("route cannot be read", flow=entry.key, error=str(error))
        return
    known = routes.get(entry.key)
    if known is not None and route.epoch < known.epoch:
        log.warning("a route of an earlier leader is left alone", flow=entry.key, epoch=route.epoch, known=known.epoch)
        return
    routes[entry.key] = route


def _state(routes: dict[str, Route], flow: str) -> str:
    route = routes.get(flow)
    return route.state if route else "gone"


class Routes(Protocol):
    """What publishing asks of the table."""

    async def read_again(self, flow: str) -> Route | None: ...
