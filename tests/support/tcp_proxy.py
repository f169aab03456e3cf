"""A TCP proxy between a client and a real server, for tests that break, freeze or thin out a connection."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

CHUNK = 256 * 1024


class TcpProxy:
    """Passes bytes on, to and fro. `cut` resets what is open; `frozen` holds both ways back; `drop_sent` says of
    a chunk from the client whether it is lost."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self.drop_sent: Callable[[bytes], bool] = lambda chunk: False
        # What a chunk from the client must hold for everything to be held back, from that chunk on.
        self.freeze_at = b""
        self.sent = bytearray()
        self.port = 0

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        self._flowing.set()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def cut(self) -> None:
        """Resets every open connection; new ones are let in."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, far_writer}
        for source, sink, is_sent in ((reader, far_writer, True), (far_reader, writer, False)):
            pump = asyncio.create_task(self._pump(source, sink, is_sent))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_sent: bool) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            while chunk := await source.read(CHUNK):
                await self._flowing.wait()
                if is_sent:
                    if self.freeze_at and self.freeze_at in chunk:
                        self.freeze_at = b""
                        self.freeze()
                        await self._flowing.wait()
                    self.sent += chunk
                    if self.drop_sent(chunk):
                        continue
                sink.write(chunk)
                await sink.drain()
        sink.transport.abort()
