"""A TCP proxy between a client and a real server, for tests that break, freeze, slow or thin out connections.

Connections to a NATS server are known by the name that their client gives in CONNECT (a sidecar's is its instance):
whatever takes a `name` concerns those whose name begins with it, and all where it is empty.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

CHUNK = 256 * 1024
NAME = re.compile(rb'CONNECT \{.*?"name": ?"([^"]*)"')


@dataclass(eq=False)
class Link:
    """One connection through the proxy."""

    near: asyncio.StreamWriter
    far: asyncio.StreamWriter
    name: str = ""
    swallowed: bool = False

    def cut(self) -> None:
        self.near.transport.abort()
        self.far.transport.abort()


class TcpProxy:
    """Passes bytes on, to and fro. `cut` resets what is open; `frozen` holds both ways back; `black_hole` swallows
    both ways while the connections stay open; `drop_sent` says of a chunk from the client whether it is lost.

    `delay_s` is added to each read of either side (what comes meanwhile goes with the next), `bytes_per_s` is how
    much passes each way of each connection (0: as much as comes)."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._target = (host, port)
        self._server: asyncio.Server | None = None
        self._links: set[Link] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._swallowed: list[str] = []
        self.drop_sent: Callable[[bytes], bool] = lambda chunk: False
        self.delay_s = 0.0
        self.bytes_per_s = 0.0
        # What a chunk from the client must hold for everything to be held back, from that chunk on.
        self.freeze_at = b""
        # Everything that clients sent; a long run through the proxy leaves it off.
        self.keep_sent = True
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

    def cut(self, name: str = "") -> int:
        """Resets open connections; new ones are let in. Answers how many."""
        found = list(self._named(name))
        for link in found:
            link.cut()
            self._links.discard(link)
        return len(found)

    def freeze(self) -> None:
        self._flowing.clear()

    def thaw(self) -> None:
        self._flowing.set()

    def black_hole(self, name: str = "") -> None:
        """From now on open and new connections of that name lead nowhere, without a word."""
        self._swallowed.append(name)
        for link in self._named(name):
            link.swallowed = True

    def heal(self) -> None:
        """Ends all black holes. What was swallowed is lost, so those connections are cut."""
        self._swallowed.clear()
        for link in [link for link in self._links if link.swallowed]:
            link.cut()
            self._links.discard(link)

    def _named(self, name: str) -> Iterator[Link]:
        return (link for link in list(self._links) if link.name.startswith(name))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, far_writer)
        link.swallowed = "" in self._swallowed
        self._links.add(link)
        for source, sink, is_sent in ((reader, far_writer, True), (far_reader, writer, False)):
            pump = asyncio.create_task(self._pump(link, source, sink, is_sent))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, link: Link, source: asyncio.StreamReader, sink: asyncio.StreamWriter, is_sent: bool) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            while chunk := await source.read(CHUNK):
                await self._flowing.wait()
                if is_sent and await self._is_dropped(link, chunk):
                    continue
                if link.swallowed:
                    continue
                pause_s = self.delay_s + (len(chunk) / self.bytes_per_s if self.bytes_per_s else 0.0)
                if pause_s:
                    await asyncio.sleep(pause_s)  # tidy: pace
                sink.write(chunk)
                await sink.drain()
        sink.transport.abort()
        self._links.discard(link)

    async def _is_dropped(self, link: Link, chunk: bytes) -> bool:
        if self.freeze_at and self.freeze_at in chunk:
            self.freeze_at = b""
            self.freeze()
            await self._flowing.wait()
        if not link.name and (found := NAME.search(chunk)):
            link.name = found[1].decode(errors="replace")
            link.swallowed = link.swallowed or any(link.name.startswith(name) for name in self._swallowed)
        if self.keep_sent:
            self.sent += chunk
        return self.drop_sent(chunk)
