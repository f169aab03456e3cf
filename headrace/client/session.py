"""What the areas of the client share: one channel, one way to call, one way to stream."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Self, TypeVar

import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from headrace.client.calls import FIRST_DELAY_S, MAX_DELAY_S, attempt
from headrace.client.errors import error_of_call
from headrace.edge.data_directory import api_of_this_machine
from headrace.edge.grpc_channel import DEFAULT_TIMEOUT_S, open_channel
from headrace.model.errors import Exhausted, Unavailable

MAX_LISTED = 10_000
USER_KEY = "headrace-user"
PAGE_SIZE = 500

Answer = TypeVar("Answer")
Item = TypeVar("Item")


class Session:
    """An open channel to a mesh's API address. Use it as an async context manager, in one event loop."""

    def __init__(
        self, address: str = "", *, timeout_s: float = DEFAULT_TIMEOUT_S, queue_s: float = 0.0, user: str = ""
    ) -> None:
        """`address` is `host:port` or `unix:/path`, or several of `host:port` with commas between: while one does
        not answer, the next is used. Empty: the mesh on this machine's data directory (`$HEADRACE_DATA`, else
        `./.headrace`). `timeout_s` is the limit of one call with its retries, `user` who the history names (the
        caller's address, if empty).

        With `queue_s` a verb waits so long for the operation at work on its flow, instead of being refused (BUSY).
        """
        self.address = address or api_of_this_machine()
        self.timeout_s = timeout_s
        self.queue_s = queue_s
        self._metadata = ((USER_KEY, user),) if user else ()
        self._open: grpc.aio.Channel | None = None

    async def __aenter__(self) -> Self:
        self._open = open_channel(self.address, timeout_s=self.timeout_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the channel; calls and streams in flight are cancelled."""
        channel, self._open = self._open, None
        if channel is not None:
            await channel.close()

    @property
    def channel(self) -> grpc.aio.Channel:
        """The open channel, for stubs that this client does not cover."""
        if self._open is None:
            raise RuntimeError("the client is not open: write `async with AsyncClient(address) as client:`")
        return self._open

    async def _call(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Any, Answer],
        request: Message,
        *,
        timeout_s: float | None = None,
    ) -> Answer:
        """One unary call. A request that has a `request_id` gets one, if it has none yet, before the first attempt:
        that is why a repeat, of which nobody knows whether the first attempt was heard, does nothing twice."""
        if "request_id" in request.DESCRIPTOR.fields_by_name and not request.request_id:  # type: ignore[attr-defined]
            request.request_id = new_request_id()  # type: ignore[attr-defined]

        async def once(remaining_s: float) -> Answer:
            return await method(request, timeout=remaining_s, metadata=self._metadata)

        return await self._attempt(once, timeout_s)

    async def _attempt(self, once: Callable[[float], Awaitable[Answer]], timeout_s: float | None = None) -> Answer:
        return await attempt(once, address=self.address, timeout_s=timeout_s or self.timeout_s)

    async def _stream(
        self, method: grpc.aio.UnaryStreamMultiCallable[Any, Answer], request: object
    ) -> AsyncGenerator[Answer, None]:
        """The messages of a server stream; the call is cancelled when the reader leaves."""
        call = method(request, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise error_of_call(error, self.address) from None
        finally:
            call.cancel()

    async def _stream_again(
        self, method: Callable[[], Any], request: object, away_s: float
    ) -> AsyncGenerator[Any, None]:
        """Like `_stream`, begun again (with the request as it is then) whenever it ends; Unavailable once no mesh has
        answered for `away_s` seconds."""
        loop = asyncio.get_running_loop()
        heard_at, delay = loop.time(), FIRST_DELAY_S
        while True:
            try:
                async for message in self._stream(method(), request):
                    heard_at, delay = loop.time(), FIRST_DELAY_S
                    yield message
            except Unavailable:
                if loop.time() - heard_at > away_s:
                    raise
            # It was ended in good order by a mesh that stops, or the connection broke.
            await asyncio.sleep(delay)
            delay = min(2 * delay, MAX_DELAY_S)

    async def _collect(self, read_page: Callable[[str], Awaitable[tuple[list[Item], str]]]) -> list[Item]:
        """All items of a paged list, at most 10 000."""
        found: list[Item] = []
        token = ""
        while True:
            items, token = await read_page(token)
            found.extend(items)
            if not token:
                return found
            if len(found) >= MAX_LISTED:
                raise Exhausted(f"more than {MAX_LISTED} items", next_step="Read page by page through the channel")


def new_request_id() -> str:
    """A UUID: the same one on every attempt of a call makes the call happen once."""
    return str(uuid.uuid4())


def timestamp_of(time: datetime | None) -> Timestamp | None:
    """For a request; a time without a zone is this machine's."""
    if time is None:
        return None
    stamp = Timestamp()
    stamp.FromDatetime(time.astimezone(UTC))
    return stamp


def resource(collection: str, name: str) -> str:
    """`flows/orders` for `orders` or `flows/orders`."""
    return name if name.startswith(f"{collection}/") else f"{collection}/{name}"
