"""Figures of the broker: of our account by the JetStream API, of each server by its monitoring port, where known."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass

from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
from headrace.edge.structured_log import get_logger
from headrace.model.errors import Unavailable
from headrace.model.metric_readings import Readings

log = get_logger(__name__)

LIMIT_S = 2.0
MOST_BYTES = 1024 * 1024
MOST_SERVERS = 16


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """One nats-server. `disk_free` and `disk_size` are of its store's disk; -1 where that is not on this machine."""

    name: str
    memory: int
    connections: int
    slow_consumers: int
    received: int
    sent: int
    storage_limit: int
    disk_free: int = -1
    disk_size: int = -1


@dataclass(frozen=True, slots=True)
class BrokerFigures:
    """`answer_s`: how long JetStream took to answer; None when it did not. `servers` by their monitoring address; None
    for one that did not answer."""

    answer_s: float | None
    streams: int
    consumers: int
    stored: int
    api_errors: int
    servers: dict[str, ServerFigures | None]


async def read_broker(assets: JetStreamAssets, monitors: Sequence[str]) -> BrokerFigures:
    """Asks both, within some 2 s. `monitors` are URLs as `http://127.0.0.1:8222`."""
    began = time.monotonic()
    loop = asyncio.get_running_loop()
    asked = [loop.run_in_executor(None, read_server, url) for url in monitors[:MOST_SERVERS]]
    account, answer_s = {}, None
    try:
        async with asyncio.timeout(LIMIT_S):
            account = await assets.account()
        answer_s = time.monotonic() - began
    except (Unavailable, JetStreamApiError, TimeoutError) as error:
        log.debug("the broker's account does not answer", error=str(error)[:200])
    servers = dict(zip(monitors, await asyncio.gather(*asked), strict=False))
    return BrokerFigures(
        answer_s=answer_s,
        streams=int(account.get("streams", 0)),
        consumers=int(account.get("consumers", 0)),
        stored=int(account.get("storage", 0)) + int(account.get("memory", 0)),
        api_errors=int(account.get("api", {}).get("errors", 0)),
        servers=servers,
    )


def read_server(url: str) -> ServerFigures | None:
    """Blocks for at most some 2 s; None when the port does not answer as nats-server does."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/varz", timeout=LIMIT_S) as answer:  # noqa: S310  an operator's URL
            facts = json.loads(answer.read(MOST_BYTES))
        config = facts.get("jetstream", {}).get("config", {})
        free, size = _disk_of(str(config.get("store_dir", "")), url)
        return ServerFigures(
            name=str(facts["server_name"])[:64],
            memory=int(facts["mem"]),
            connections=int(facts["connections"]),
            slow_consumers=int(facts["slow_consumers"]),
            received=int(facts["in_bytes"]),
            sent=int(facts["out_bytes"]),
            storage_limit=int(config.get("max_storage", 0)),
            disk_free=free,
            disk_size=size,
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.debug("a server's monitoring does not answer", error=repr(error)[:200])
        return None


def _disk_of(store: str, url: str) -> tuple[int, int]:
    """Free and whole size of the disk of a store on this machine; -1 for one elsewhere."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if not store or not (host == "localhost" or host == "::1" or host.startswith("127.")):
        return -1, -1
    try:
        found = os.statvfs(store)
    except OSError:
        return -1, -1
    return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize


def put_reach(figures: BrokerFigures, readings: Readings) -> None:
    """Whether the broker answers this process: that is told by each, also by one that does not lead."""
    readings.put("broker_up", figures.answer_s is not None)
    if figures.answer_s is not None:
        readings.put("broker_answer_seconds", figures.answer_s)


def put_broker(figures: BrokerFigures, readings: Readings) -> None:
    """Adds them to what is told; what is not known is left out."""
    put_reach(figures, readings)
    if figures.answer_s is not None:
        readings.put("broker_streams", figures.streams)
        readings.put("broker_consumers", figures.consumers)
        readings.put("broker_stored_bytes", figures.stored)
        readings.put("broker_api_errors_total", figures.api_errors)
    for url, server in figures.servers.items():
        name = server.name if server is not None else urllib.parse.urlsplit(url).netloc
        readings.put("broker_server_up", server is not None, name)
        if server is None:
            continue
        readings.put("broker_server_memory_bytes", server.memory, name)
        readings.put("broker_server_connections", server.connections, name)
        readings.put("broker_server_slow_consumers_total", server.slow_consumers, name)
        readings.put("broker_server_received_bytes_total", server.received, name)
        readings.put("broker_server_sent_bytes_total", server.sent, name)
        readings.put("broker_server_storage_limit_bytes", server.storage_limit, name)
        if server.disk_size >= 0:
            readings.put("broker_server_disk_free_bytes", server.disk_free, name)
            readings.put("broker_server_disk_size_bytes", server.disk_size, name)
