"""The documents of sampling in KV: read at the start and at each change; captures are claimed by compare-and-set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from functools import partial

import msgspec

from headrace.edge.kv_bucket import KvBucket
from headrace.edge.structured_log import get_logger
from headrace.model import bucket_names
from headrace.model.errors import Conflict, HeadraceError
from headrace.model.sampling import DEFAULT, Sampling, claimed, decode_sampling, encode_sampling

log = get_logger(__name__)

RESYNC_S = 240.0
"""A hint may be lost with a connection; this finds what it told of."""
PAUSE_S = 0.2
TRIES = 8
MAX_CLAIMS = 1_000


async def read_sampling(bucket: KvBucket, flow: str) -> tuple[Sampling, int]:
    """The document and its revision; the default and 0 where there is none."""
    entry = await bucket.get(bucket_names.sampling_key(flow))
    if entry is None or not entry.value:
        return DEFAULT, 0
    try:
        return decode_sampling(entry.value), entry.revision
    except msgspec.MsgspecError as error:
        log.error("a document of sampling cannot be read", flow=flow, error=str(error)[:300])
        return DEFAULT, entry.revision


async def edit_sampling(bucket: KvBucket, flow: str, edit: Callable[[Sampling], Sampling | None]) -> Sampling:
    """Compare-and-set until it holds; `edit` answers None where nothing is to be changed. Conflict if others change it
    all the time."""
    for _ in range(TRIES):
        present, revision = await read_sampling(bucket, flow)
        wanted = edit(present)
        if wanted is None:
            return present
        try:
            if revision:
                await bucket.update(bucket_names.sampling_key(flow), encode_sampling(wanted), revision)
            else:
                await bucket.create(bucket_names.sampling_key(flow), encode_sampling(wanted))
        except Conflict:
            await asyncio.sleep(PAUSE_S / 10)
            continue
        return wanted
    raise Conflict(f"the sampling of flow {flow!r} keeps changing", reason="KEEPS_CHANGING", next_step="Try again")


def _claim(executions: Iterable[str], present: Sampling) -> Sampling | None:
    return claimed(present, executions, time.time())


class SamplingDocuments:
    """Those of one flow, or of all (`flow` `*`). Give `follow` to a TaskGroup; `on_change` gets each document read."""

    def __init__(self, bucket: KvBucket, flow: str, on_change: Callable[[str, Sampling], None]) -> None:
        self._bucket = bucket
        self._flow = flow
        self._on_change = on_change
        self._wake = asyncio.Event()
        self._look = True
        self._known: set[str] = set()
        self._claims: dict[str, dict[str, None]] = {}
        self.read = asyncio.Event()
        """Set once all were read for the first time."""

    def claim(self, flow: str, executions: Iterable[str]) -> None:
        """These were caught; told to everybody by the document, a moment later."""
        claims = self._claims.setdefault(flow, {})
        for execution in executions:
            if len(claims) < MAX_CLAIMS:
                claims[execution] = None
        self._wake.set()

    async def follow(self) -> None:
        """For ever; only a cancellation ends it."""
        async with self._bucket.told(bucket_names.sampling_key(self._flow), self._told):
            while True:
                try:
                    await self._claim_all()
                    if self._look:
                        self._look = False
                        await self._read()
                        self.read.set()
                except HeadraceError as error:
                    self._look = True
                    log.debug("sampling not read", error=str(error)[:300])
                    await asyncio.sleep(PAUSE_S)
                    continue
                try:
                    async with asyncio.timeout(RESYNC_S):
                        await self._wake.wait()
                except TimeoutError:
                    self._look = True
                self._wake.clear()

    def _told(self) -> None:
        self._look = True
        self._wake.set()

    async def _read(self) -> None:
        if self._flow != "*":
            sampling, _ = await read_sampling(self._bucket, self._flow)
            self._on_change(self._flow, sampling)
            return
        found = {
            key.removeprefix(bucket_names.sampling_key(""))
            for key in await self._bucket.keys(bucket_names.sampling_key("*"))
        }
        for flow in found | self._known:
            sampling, _ = await read_sampling(self._bucket, flow)
            self._on_change(flow, sampling)
        self._known = found

    async def _claim_all(self) -> None:
        while self._claims:
            flow, executions = self._claims.popitem()
            await edit_sampling(self._bucket, flow, partial(_claim, executions))
