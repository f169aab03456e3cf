"""The gateway's view of the flows: a copy of the routes bucket, kept fresh by watching and re-reading."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import msgspec
import nats.errors

from headrace.edge.kv_bucket import Entry, KvBucket
from headrace.edge.structured_log import get_logger
from headrace.model.errors import HeadraceError
from headrace.model.route import Route, decode_route

log = get_logger(__name__)

REREAD_S = 3.0
RETRY_S = 0.2


class RouteTable:
    """Flow name → Route.

    One watch at a time, ended and begun again every `REREAD_S`: each begins with all present entries, so that
    changes which a watch missed (the broker restarted) are seen after that time at the latest.
    """

    def __init__(self, bucket: KvBucket) -> None:
        self._bucket = bucket
        self._routes: dict[str, Route] = {}
        self._complete = asyncio.Event()

    def find(self, flow: str) -> Route | None:
        return self._routes.get(flow)

    async def wait_until_read(self, timeout_s: float) -> None:
        """Returns when the bucket has been read once; TimeoutError past the limit."""
        async with asyncio.timeout(timeout_s):
            await self._complete.wait()

    async def follow(self) -> None:
        """Runs until cancelled."""
        while True:
            try:
                async with asyncio.timeout(REREAD_S):
                    await self._watch_once()
            except TimeoutError:
                continue
            except (HeadraceError, nats.errors.Error) as error:
                log.debug("routes cannot be read", error=repr(error))
                await asyncio.sleep(RETRY_S)

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
                _apply(entry, fresh)
                if not reading:
                    log.info("route changed", flow=entry.key, state=_state(fresh, entry.key))


def _apply(entry: Entry, routes: dict[str, Route]) -> None:
    if entry.value is None:
        routes.pop(entry.key, None)
        return
    try:
        routes[entry.key] = decode_route(entry.value)
    except msgspec.DecodeError as error:
        log.error("route cannot be read", flow=entry.key, error=str(error))


def _state(routes: dict[str, Route], flow: str) -> str:
    route = routes.get(flow)
    return route.state if route else "gone"


RouteFinder = Callable[[str], Route | None]
