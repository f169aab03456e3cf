"""A raw keep-alive HTTP/1.1 connection over asyncio streams: what it sends and reads is all there is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Header names are lower-case; repeated ones keep the last value."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class HttpConnection:
    """One connection. ConnectionError, asyncio.IncompleteReadError or TimeoutError when it dies."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.sent = False
        """True as soon as a byte of the current request may have left."""

    @classmethod
    async def open(cls, address: str, limit_s: float = 5.0) -> HttpConnection:
        """`address` is host:port."""
        host, _, port = address.rpartition(":")
        async with asyncio.timeout(limit_s):
            reader, writer = await asyncio.open_connection(host, int(port), limit=4 * 1024 * 1024)
        return cls(reader, writer)

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        *,
        limit_s: float = 20.0,
    ) -> HttpAnswer:
        """Sends one request with a content-length (unless it is GET without body) and reads its answer."""
        self.write(request_bytes(method, path, body, headers))
        async with asyncio.timeout(limit_s):
            await self._writer.drain()
            return await self.read_answer()

    def write(self, raw: bytes) -> None:
        self.sent = True
        self._writer.write(raw)

    @property
    def is_closed(self) -> bool:
        """True when the peer has ended the connection, as far as is known."""
        return self._reader.at_eof() or self._reader.exception() is not None or self._writer.is_closing()

    async def drain(self) -> None:
        await self._writer.drain()

    async def answer(self, limit_s: float = 20.0) -> HttpAnswer:
        async with asyncio.timeout(limit_s):
            return await self.read_answer()

    async def read_answer(self) -> HttpAnswer:
        head = (await self._reader.readuntil(b"\r\n\r\n"))[:-4].split(b"\r\n")
        status = int(head[0].split(b" ")[1])
        headers: dict[str, str] = {}
        for line in head[1:]:
            name, _, value = line.partition(b":")
            headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        if status == 100:
            return await self.read_answer()
        if headers.get("transfer-encoding") == "chunked":
            body = await self._read_chunks()
        else:
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        self.sent = False
        return HttpAnswer(status, headers, body)

    async def _read_chunks(self) -> bytes:
        body = b""
        while True:
            size = int(await self._reader.readline(), 16)
            body += await self._reader.readexactly(size)
            await self._reader.readexactly(2)
            if size == 0:
                return body

    async def at_end(self, limit_s: float = 5.0) -> bool:
        """True when the peer closed; AssertionError-free: False if it sent something else."""
        try:
            async with asyncio.timeout(limit_s):
                return await self._reader.read(1) == b""
        except ConnectionError:
            return True

    def abort(self) -> None:
        """Ends the connection with a reset."""
        self._writer.transport.abort()

    async def close(self) -> None:
        self._writer.close()
        try:
            async with asyncio.timeout(1.0):
                await self._writer.wait_closed()
        except (TimeoutError, OSError):
            self._writer.transport.abort()


def request_bytes(method: str, path: str, body: bytes, headers: Mapping[str, str] | None) -> bytes:
    """One whole request."""
    lines = [f"{method} {path} HTTP/1.1", "host: test"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if body or method == "POST":
        lines.append(f"content-length: {len(body)}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def fetch(
    address: str, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> HttpAnswer:
    """One request on a connection of its own."""
    connection = await HttpConnection.open(address)
    try:
        return await connection.request(method, path, body, headers)
    finally:
        await connection.close()


async def serves(address: str) -> bool:
    """True when the gateway there is up."""
    try:
        return (await fetch(address, "GET", "/healthz")).status == 200
    except (OSError, asyncio.IncompleteReadError):
        return False
