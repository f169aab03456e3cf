"""The Transfer stream of a component, which a call may want before the sidecar has opened it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from headrace.api.component.v1 import component_pb2 as pb
from headrace.sdk import ComponentError, transfer_stream
from headrace.sdk.transfer_stream import TransferStream


class Rpc:
    """Answers a download with one chunk."""

    def __init__(self) -> None:
        self.frames: asyncio.Queue[Any] = asyncio.Queue()

    async def read(self) -> Any:
        return await self.frames.get()

    async def write(self, frame: pb.TransferResponse, /) -> None:
        if frame.HasField("download"):
            self.frames.put_nowait(pb.TransferRequest(transfer=frame.transfer, chunk=b"abc"))
            self.frames.put_nowait(pb.TransferRequest(transfer=frame.transfer, end=pb.TransferEnd()))


async def joined(stream: TransferStream) -> bytes:
    return b"".join([chunk async for chunk in stream.download(1, "x")])


async def test_a_call_that_overtakes_the_stream_waits_for_it() -> None:
    stream, rpc = TransferStream(), Rpc()
    early = asyncio.create_task(joined(stream))
    await asyncio.sleep(0)  # tidy: pace
    assert not early.done()
    running = asyncio.create_task(stream.run(rpc))
    async with asyncio.timeout(5):
        assert await early == b"abc"
        rpc.frames.put_nowait(grpc.aio.EOF)
        await running
        with pytest.raises(ComponentError, match="gone"):
            await joined(stream)


async def test_a_stream_that_never_stands_is_waited_for_within_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer_stream, "STANDS_WITHIN_S", 0.01)
    with pytest.raises(ComponentError, match="gone"):
        await joined(TransferStream())
