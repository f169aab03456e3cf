"""Since when the broker's present process is known: the first that meets it writes it down, the others read it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import msgspec

from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.errors import Conflict, HeadraceError
from services.sidecar.domain.doubt import note_server

if TYPE_CHECKING:
    from nats.aio.client import Client

    from headrace.edge.kv_bucket import KvBucket

log = get_logger(__name__)

TRIES = 5


class BrokerEpoch:
    """`since` is Unix seconds; 0 while it is not known."""

    def __init__(self, connection: Client, bucket: KvBucket) -> None:
        self._connection = connection
        self._bucket = bucket
        self._server = ""
        self.since = 0.0

    async def look(self) -> None:
        """Call it after each connect; cheap while the broker's process is the same. Never raises."""
        server = str(self._connection._server_info.get("server_id", ""))
        if not server or server == self._server:
            return
        try:
            self.since = await self._since(server)
            self._server = server
        except HeadraceError as error:
            log.debug("broker's process not noted", error=str(error))

    async def _since(self, server: str) -> float:
        key = bucket_names.broker_key()
        for _ in range(TRIES):
            entry = await self._bucket.get(key)
            known = msgspec.json.decode(entry.value, type=dict[str, float]) if entry is not None and entry.value else {}
            now = time.time()
            noted = note_server(known, server, now)
            if noted is None:
                return known[server]
            try:
                raw = msgspec.json.encode(noted)
                if entry is None:
                    await self._bucket.create(key, raw)
                else:
                    await self._bucket.update(key, raw, entry.revision)
                return now
            except Conflict:
                continue  # somebody else met it at the same moment
        return time.time()
