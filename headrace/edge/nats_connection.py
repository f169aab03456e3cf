"""The control-plane connection to NATS (nats-py): options that never give up, bounded waits."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import nats.errors
from nats.aio.client import Client

from headrace.edge.structured_log import get_logger
from headrace.model.broker_url import without_password
from headrace.model.errors import Unavailable

log = get_logger(__name__)

RECONNECT_WAIT_S = 0.2
# A server that is silent for so many pings is given up. Where there are others, that shall not take half a minute.
PING_S = 10
PING_IN_A_CLUSTER_S = 2
PINGS = 3
PENDING_BYTES = 8 * 1024 * 1024


async def connect_nats(
    url: str,
    name: str,
    *,
    timeout_s: float = 10.0,
    on_reconnect: Callable[[], Awaitable[None]] | None = None,
) -> Client:
    """Connects within the limit or raises Unavailable naming the URL; afterwards reconnects for ever."""

    async def note_error(error: Exception) -> None:
        log.debug("broker connection", error=without_password(repr(error)))

    async def note_disconnect() -> None:
        log.warning("broker disconnected", connection=name)

    async def note_reconnect() -> None:
        log.info("broker reconnected", connection=name)
        if on_reconnect is not None:
            await on_reconnect()

    options: dict[str, Any] = {
        "servers": url.split(","),
        "name": name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": RECONNECT_WAIT_S,
        "connect_timeout": 2,
        "allow_reconnect": True,
        "ping_interval": PING_IN_A_CLUSTER_S if "," in url else PING_S,
        "max_outstanding_pings": PINGS,
        "pending_size": PENDING_BYTES,
        "error_cb": note_error,
        "disconnected_cb": note_disconnect,
        "reconnected_cb": note_reconnect,
    }
    deadline = asyncio.get_running_loop().time() + timeout_s
    while True:
        client = Client()
        try:
            # A server that has no connection left is asked by the client for ever: the limit is ours to keep.
            async with asyncio.timeout_at(deadline):
                await client.connect(**options)
            return client
        except (OSError, TimeoutError, nats.errors.Error) as error:
            with contextlib.suppress(Exception):
                await client.close()
            if asyncio.get_running_loop().time() >= deadline:
                raise Unavailable(
                    f"no NATS server answers at {without_password(url)}: {without_password(repr(error))}",
                    reason="BROKER_UNREACHABLE",
                    next_step="Check --nats and that the server runs",
                ) from error
            await asyncio.sleep(0.1)


async def close_nats(connection: Client, timeout_s: float = 2.0) -> None:
    """Flushes within the limit, then closes; never raises."""
    try:
        async with asyncio.timeout(timeout_s):
            if connection.is_connected:
                await connection.flush(timeout=max(1, int(timeout_s)))
    except Exception as error:
        log.debug("flush before close failed", error=repr(error))
    try:
        async with asyncio.timeout(timeout_s):
            await connection.close()
    except Exception as error:
        log.debug("close failed", error=repr(error))
