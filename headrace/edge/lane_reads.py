"""The reads of a lane: one request, one answer, on the lane's own inbox. Their callers keep the time."""

from __future__ import annotations

import asyncio

from headrace.edge.nats_link import NatsLink
from headrace.wire import jetstream

READ_LETTER = b"r"


class ReadBook:
    """A read ends in its answer, or in ConnectionError when the connection breaks or nobody listens."""

    def __init__(self, link: NatsLink, prefix: bytes) -> None:
        self._link, self._prefix = link, prefix
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._number = 0

    async def ask(self, subject: str, payload: bytes) -> bytes:
        """Call it within a time limit."""
        self._number += 1
        token = b"%b%d" % (READ_LETTER, self._number)
        future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        command = b"PUB %b %b%b %d\r\n%b\r\n" % (subject.encode(), self._prefix, token, len(payload), payload)
        self._link.write(command)
        try:
            return await future
        finally:
            self._waiting.pop(token, None)

    def answer(self, token: bytes, payload: bytes, headers: bytes | None) -> None:
        """One that comes too late finds nobody."""
        future = self._waiting.pop(token, None)
        if future is None or future.done():
            return
        if headers is not None and not payload:
            code, text = jetstream.parse_status(headers)
            absent = code == jetstream.NO_RESPONDERS
            future.set_exception(ConnectionError("no responders" if absent else f"{text} ({code})"))
        else:
            future.set_result(payload)

    def end_all(self, cause: str) -> None:
        """Nothing more will be answered."""
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_exception(ConnectionError(cause))
