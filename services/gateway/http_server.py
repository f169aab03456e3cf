"""uvicorn inside the service's own loop: it listens, accepts and ends; each connection is a GatewayProtocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp

from headrace.edge.arrival_stamp import stamp_arrivals
from headrace.model.errors import InvalidInput
from services.gateway.connection_rest import ConnectionRest, ResponseDate
from services.gateway.http_connection import HEAD_LIMIT_S, GatewayProtocol
from services.gateway.socket_reader import SocketReader

BACKLOG = 2_048
START_LIMIT_S = 5.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()
        self._leaving = asyncio.Event()

    def leave(self) -> None:
        """Ends `main_loop`, and with it `serve`, in order."""
        self.should_exit = True
        self._leaving.set()

    async def main_loop(self) -> None:
        """uvicorn looks ten times a second whether it is to end, and sets the date; here requests set it."""
        await self._leaving.wait()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Signals belong to service_runner."""
        yield


class HttpServer:
    """`start` serves; `close` ends idle connections at once and waits for the others, within its limit."""

    def __init__(self, app: ASGIApp, host: str, port: int, *, head_limit_s: float = HEAD_LIMIT_S) -> None:
        self._app = app
        self._head_limit_s = head_limit_s
        self._protocol: type[GatewayProtocol] = GatewayProtocol
        self._host = host
        self._port = port
        self._server: _Server | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self, tasks: asyncio.TaskGroup) -> str:
        """Answers the address, `host:port`; InvalidInput if it cannot be had."""
        listener = _listen(self._host, self._port)
        stamp_arrivals(listener)  # for what it accepts
        config = uvicorn.Config(
            self._app,
            http=cast("Any", self._make_reader),
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=1,
            backlog=BACKLOG,
        )
        self._server = _Server(config)
        state = self._server.server_state
        shared = {
            "head_limit_s": self._head_limit_s,
            "rest": ConnectionRest(cast("set[GatewayProtocol]", state.connections)),
            "date": ResponseDate(state),
        }
        self._protocol = type("GatewayProtocol", (GatewayProtocol,), shared)
        port = int(listener.getsockname()[1])
        self._task = tasks.create_task(self._server.serve(sockets=[listener]), name="http-server")
        async with asyncio.timeout(START_LIMIT_S):
            await self._server.listening.wait()
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{host}:{port}"

    def _make_reader(self, **uvicorn_gives: Any) -> SocketReader:
        return SocketReader(self._protocol(**uvicorn_gives))

    @property
    def connections(self) -> int:
        return len(self._server.server_state.connections) if self._server else 0

    async def close(self, limit_s: float) -> None:
        """Closes the listening socket, then the connections; returns when the server has ended."""
        if self._server is None or self._task is None:
            return
        self._server.leave()
        self._protocol.rest.end()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(limit_s):
                await asyncio.shield(self._task)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise InvalidInput.at(
            "listen",
            f"{host}:{port}",
            f"cannot be had: {error.strerror}",
            next_step="Give another port, or 0 for a free one",
            reason="PORT_TAKEN",
        ) from error
