"""grpc.health.v1: the services of a process, and whatever else has a health (flows)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from typing import Any, Protocol

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from grpc_health.v1 import health, health_pb2

from headrace.model.errors import Exhausted

MOST_WATCHES = 500
SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"
UNKNOWN = "UNKNOWN"
SERVICE_UNKNOWN = "SERVICE_UNKNOWN"
"""Only in a watch: there is no such thing now."""


class HealthSource(Protocol):
    """Tells the health of things whose names begin with `prefix`, in the words of grpc.health.v1."""

    prefix: str

    async def check(self, name: str) -> str | None:
        """None: there is no such thing."""

    def watch(self, name: str) -> AsyncGenerator[str, None]:
        """The present health, then each other one; SERVICE_UNKNOWN while there is no such thing."""

    async def all(self) -> dict[str, str]:
        """Of all things, by name."""


class HealthService(health.aio.HealthServicer):  # type: ignore[misc]
    """grpcio's, with `List`, which that does not have, and with things that come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.source: HealthSource | None = None
        self._stopping = asyncio.Event()
        self._watches = 0

    def _asked(self, name: str) -> HealthSource | None:
        """Who knows the thing; None for the services of this process."""
        return self.source if self.source is not None and name.startswith(self.source.prefix) else None

    async def Check(self, request: Any, context: Any) -> Any:
        source = self._asked(request.service)
        if source is None:
            return await super().Check(request, context)
        status = await source.check(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"there is no {request.service}")
        return _answer(str(status))

    async def Watch(self, request: Any, context: Any) -> None:
        source = self._asked(request.service)
        if source is None:
            await super().Watch(request, context)
            return
        if self._watches >= MOST_WATCHES:
            raise Exhausted(f"{MOST_WATCHES} health watches are open, which is the limit", next_step="Use Check")
        self._watches += 1
        try:
            async with contextlib.aclosing(_until(self._stopping, source.watch(request.service))) as statuses:
                async for status in statuses:
                    await context.write(_answer(status))
            await context.write(_answer(NOT_SERVING))
        finally:
            self._watches -= 1

    async def List(self, request: Any, context: Any) -> Any:
        messages: Any = health_pb2  # whose stubs are older
        statuses = {
            name: messages.HealthCheckResponse(status=status) for name, status in vars(self)["_server_status"].items()
        }
        if self.source is not None:
            statuses |= {name: _answer(status) for name, status in (await self.source.all()).items()}
        return messages.HealthListResponse(statuses=statuses)

    async def enter_graceful_shutdown(self) -> None:
        """Everything is NOT_SERVING from now on, before any call is refused; watches of things end."""
        self._stopping.set()
        await super().enter_graceful_shutdown()


def _answer(status: str) -> Any:
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.ServingStatus.Value(status))


async def _until(stopping: asyncio.Event, statuses: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
    """What the iterator gives, until the event is set."""
    ending = asyncio.ensure_future(stopping.wait())
    try:
        while True:
            following = asyncio.ensure_future(statuses.__anext__())
            try:
                await asyncio.wait({following, ending}, return_when=asyncio.FIRST_COMPLETED)
                if not following.done():
                    return
                yield following.result()
            except StopAsyncIteration:
                return
            finally:
                following.cancel()
                await asyncio.gather(following, return_exceptions=True)
    finally:
        ending.cancel()
        await statuses.aclose()
