"""The `Transfer` stream of a component: bytes of attachments, asked for by functions, in chunks under a credit.

A download that nobody reads on holds what was granted and no more; an upload sends what was granted and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator
from typing import Any, Protocol

import grpc

from headrace.api.attachment.v1 import attachment_pb2
from headrace.api.component.v1 import component_pb2
from headrace.sdk.attachments import Hashed
from headrace.sdk.errors import ComponentError

FIRST_CHUNKS = 4
# A sidecar opens this stream beside that of the calls, whose first frame may overtake it.
STANDS_WITHIN_S = 5.0
LOST = ("TRANSFER_LOST", "the connection to the sidecar is gone")


class TransferRpc(Protocol):
    """The sidecar's side of the stream."""

    async def read(self) -> Any:
        """The next TransferRequest, or EOF."""

    async def write(self, frame: component_pb2.TransferResponse, /) -> None:
        """One at a time."""


class _Open:
    """One transfer: what has come of it and was not taken yet."""

    __slots__ = ("arrived", "come", "credit")

    def __init__(self) -> None:
        self.come: deque[component_pb2.TransferRequest] = deque()
        self.arrived = asyncio.Event()
        self.credit = 0

    async def wait(self) -> None:
        await self.arrived.wait()
        self.arrived.clear()


class TransferStream:
    """Serves one stream: `await run(rpc)` returns when the sidecar ended it; what is open then fails, retryable."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._rpc: TransferRpc | None = None
        self._begun = asyncio.Event()
        self._writing = asyncio.Lock()
        self._last = 0
        self._open: dict[int, _Open] = {}

    @property
    def begun(self) -> bool:
        """The sidecar has opened it, once."""
        return self._begun.is_set()

    async def run(self, rpc: TransferRpc) -> None:
        """Until its end."""
        self._rpc = rpc
        self._begun.set()
        try:
            while (request := await rpc.read()) is not grpc.aio.EOF:
                found = self._open.get(request.transfer)
                if found is None:
                    continue  # of one that was given up
                if request.WhichOneof("kind") == "taken":
                    found.credit += request.taken
                else:
                    found.come.append(request)
                found.arrived.set()
        finally:
            self._rpc = None
            for found in self._open.values():
                failure = component_pb2.TransferFailure(code=LOST[0], message=LOST[1], retryable=True)
                found.come.append(component_pb2.TransferRequest(failure=failure))
                found.arrived.set()

    def next_upload(self) -> int:
        """See Transfers. Safe in any thread."""
        self._last += 1
        return self._last

    async def download(self, call: int, identity: str, offset: int = 0) -> AsyncIterator[bytes]:
        """See Transfers."""
        number = self.next_upload()
        found = self._open[number] = _Open()
        over = False
        try:
            begin = component_pb2.Download(call=call, id=identity, chunks=FIRST_CHUNKS, offset=offset)
            await self._write(component_pb2.TransferResponse(transfer=number, download=begin))
            while True:
                while not found.come:
                    await found.wait()
                request = found.come.popleft()
                kind = request.WhichOneof("kind")
                if kind == "chunk":
                    yield request.chunk
                    await self._write(component_pb2.TransferResponse(transfer=number, more=1))
                    continue
                over = True
                if kind == "failure":
                    raise _error(request.failure)
                return
        finally:
            self._open.pop(number, None)
            if not over:
                self._cancel(number)

    async def upload(
        self, number: int, call: int, given: attachment_pb2.Attachment, chunks: AsyncIterator[bytes]
    ) -> attachment_pb2.Attachment:
        """See Transfers."""
        found = self._open[number] = _Open()
        over = False
        try:
            begin = component_pb2.Upload(
                call=call, name=given.name, content_type=given.content_type, is_body=given.is_body
            )
            await self._write(component_pb2.TransferResponse(transfer=number, upload=begin))
            hashed = Hashed(chunks)
            async for chunk in hashed:
                while not found.credit and not found.come:
                    await found.wait()
                if found.come:
                    break
                found.credit -= 1
                await self._write(component_pb2.TransferResponse(transfer=number, chunk=chunk))
            if not found.come:
                end = component_pb2.UploadEnd(digest=hashed.digest)
                await self._write(component_pb2.TransferResponse(transfer=number, end=end))
            while not found.come:
                await found.wait()
            request = found.come.popleft()
            over = True
            if request.WhichOneof("kind") == "failure":
                raise _error(request.failure)
            return request.stored
        finally:
            self._open.pop(number, None)
            if not over:
                self._cancel(number)

    async def _write(self, frame: component_pb2.TransferResponse) -> None:
        async with self._writing:
            if not self._begun.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(STANDS_WITHIN_S):
                        await self._begun.wait()
            if self._rpc is None:
                raise ComponentError(*LOST, retryable=True)
            await self._rpc.write(frame)

    def _cancel(self, number: int) -> None:
        if self._rpc is not None:
            frame = component_pb2.TransferResponse(transfer=number, cancel=component_pb2.Cancel())
            task = self.loop.create_task(self._write(frame))
            task.add_done_callback(_ended)


def _ended(task: asyncio.Task[None]) -> None:
    if not task.cancelled():
        task.exception()


def _error(failure: component_pb2.TransferFailure) -> ComponentError:
    return ComponentError(failure.code or "TRANSFER_FAILED", failure.message, retryable=failure.retryable)
