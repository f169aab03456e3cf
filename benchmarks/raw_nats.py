"""The thinnest NATS client there can be, for measuring the broker's floor and for generating load.

Not for products: no reconnect, no TLS, no flow control.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from typing import cast

_MESSAGE = re.compile(
    rb"(?:MSG (\S+) (\S+) (?:(\S*) )?(\d+)|HMSG (\S+) (\S+) (?:(\S*) )?(\d+) (\d+)"
    rb"|PING|PONG|\+OK|INFO [^\r]*|-ERR [^\r]*)\r\n"
)


class RawNats(asyncio.Protocol):
    """Writes protocol lines, hands each message to `on_message(subject, reply, payload)`; headers stay in front."""

    def __init__(self, on_message: Callable[[str, str, bytes], None]) -> None:
        self._on_message = on_message
        self._buffer = bytearray()
        self._waiting: list[bytes] = []
        self.transport: asyncio.Transport
        self._connected = asyncio.Event()

    @classmethod
    async def connect(cls, host: str, port: int, on_message: Callable[[str, str, bytes], None]) -> RawNats:
        loop = asyncio.get_running_loop()
        _, client = await loop.create_connection(lambda: cls(on_message), host, port)
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True, "lang": "raw"}
        client.transport.write(b"CONNECT " + json.dumps(options).encode() + b"\r\nPING\r\n")
        async with asyncio.timeout(5):
            await client._connected.wait()
        return client

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        position = 0
        while match := _MESSAGE.match(self._buffer, position):
            end = match.end()
            size = int(match[4] or match[9] or -1)
            if size >= 0:
                if len(self._buffer) < end + size + 2:
                    break
                headers = int(match[8] or 0)
                payload = bytes(self._buffer[end + headers : end + size])
                subject, reply = match[1] or match[5], match[3] or match[7] or b""
                position = end + size + 2
                self._on_message(subject.decode(), reply.decode(), payload)
                continue
            position = end
            line = match[0]
            if line.startswith(b"PING"):
                self.transport.write(b"PONG\r\n")
            elif line.startswith(b"PONG"):
                self._connected.set()
        del self._buffer[:position]

    def subscribe(self, subject: str, sid: int) -> None:
        self.transport.write(f"SUB {subject} {sid}\r\n".encode())

    def publish(self, subject: str, payload: bytes, reply: str = "", message_id: str = "") -> None:
        """With a message id as header, if given."""
        self.write((self.command(subject, len(payload), reply, message_id), payload, b"\r\n"))

    def command(self, subject: str, size: int, reply: str = "", message_id: str = "") -> bytes:
        """What stands before a payload of that size."""
        reply = reply + " " if reply else ""
        if not message_id:
            return f"PUB {subject} {reply}{size}\r\n".encode()
        head = f"NATS/1.0\r\nNats-Msg-Id: {message_id}\r\n\r\n"
        return f"HPUB {subject} {reply}{len(head)} {len(head) + size}\r\n{head}".encode()

    def write(self, parts: tuple[bytes, ...]) -> None:
        """What one turn of the loop publishes goes in one write: the load must not cost what it is to measure."""
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._write_now)
        self._waiting += parts

    def _write_now(self) -> None:
        parts, self._waiting = self._waiting, []
        if not self.transport.is_closing():
            self.transport.write(b"".join(parts))

    def close(self) -> None:
        self.transport.close()
