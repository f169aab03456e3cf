"""The HTTP port of a process for its operators: /metrics, /healthz (it lives), /readyz (it serves).

Nothing runs and nothing is imported until somebody connects. GET only, one place for each of few connections.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headrace.edge.structured_log import get_logger
from headrace.model.errors import InvalidInput

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

log = get_logger(__name__)

MOST_CONNECTIONS = 32
LONGEST_CONNECTION_S = 600.0
IDLE_S = 65
ANSWER_LIMIT_S = 20.0
TEXT = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: bytes
    content_type: str = TEXT
    status: int = 200


Answer = Callable[[str], Awaitable[Page]]
"""Given the Accept header."""


class ProbeServer:
    """`pages` by their path. `start` binds, `close` ends what is open."""

    def __init__(self, pages: dict[str, Answer]) -> None:
        self._pages = pages
        self._server: asyncio.Server | None = None
        self._config: Config | None = None
        self._state: ServerState | None = None
        self.address = ""

    async def start(self, address: str) -> str:
        """Answers `host:port` with the real port; InvalidInput when it cannot be had."""
        host, _, port = address.rpartition(":")
        if not port.isdigit():
            raise InvalidInput.at("metrics", address, "is not HOST:PORT")
        host = host.strip("[]") or "127.0.0.1"
        try:
            self._server = await asyncio.get_running_loop().create_server(self._connected, host, int(port))
        except OSError as error:
            raise InvalidInput.at(
                "metrics",
                address,
                f"cannot be had: {error.strerror}",
                next_step="Give another port, or 0 for a free one",
            ) from error
        real = int(self._server.sockets[0].getsockname()[1])
        self.address = f"[{host}]:{real}" if ":" in host else f"{host}:{real}"
        return self.address

    async def close(self) -> None:
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._state.connections) if self._state else ():
            transport: Any = getattr(connection, "transport", None)
            if transport is not None:
                transport.abort()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.0):
                await self._server.wait_closed()

    def _connected(self) -> asyncio.Protocol:
        """A protocol for a connection that came."""
        from uvicorn import Config
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
        from uvicorn.server import ServerState

        if self._config is None or self._state is None:
            self._config = Config(
                self._serve,
                http=HttpToolsProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=IDLE_S,
                limit_concurrency=MOST_CONNECTIONS,
            )
            self._config.load()
            self._state = ServerState()
        protocol = HttpToolsProtocol(config=self._config, server_state=self._state, app_state={})
        asyncio.get_running_loop().call_later(LONGEST_CONNECTION_S, _end, protocol)
        return protocol

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        page = await self._page(scope)
        headers = [(b"content-type", page.content_type.encode()), (b"content-length", b"%d" % len(page.body))]
        await send({"type": "http.response.start", "status": page.status, "headers": headers})
        await send({"type": "http.response.body", "body": page.body})

    async def _page(self, scope: Any) -> Page:
        answer = self._pages.get(scope["path"])
        if answer is None:
            return Page(f"nothing is here. There are {', '.join(self._pages)}\n".encode(), status=404)
        if scope["method"] not in ("GET", "HEAD"):
            return Page(b"GET is served here\n", status=405)
        accept = next((value for name, value in scope["headers"] if name == b"accept"), b"")
        try:
            async with asyncio.timeout(ANSWER_LIMIT_S):
                return await answer(accept.decode("latin-1"))
        except TimeoutError:
            return Page(f"there was no answer within {ANSWER_LIMIT_S:g} s\n".encode(), status=503)
        except Exception:
            log.exception("a page of the metrics port failed", path=scope["path"])
            return Page(b"it failed; see the log of this process\n", status=500)


def _end(protocol: Any) -> None:
    """A client that never ends its connection is connected anew: nobody holds a place for ever."""
    transport = getattr(protocol, "transport", None)
    if transport is not None and not transport.is_closing():
        transport.close()
