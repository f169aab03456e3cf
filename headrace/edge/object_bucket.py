"""One JetStream object store, read and written a chunk at a time.

The format is that of NATS object stores (any NATS tool can read them), but the operations are our own: every change of
an object is a compare-and-set on its metadata message, so that two processes cannot damage each other's work, and
whatever takes long takes one chunk at a time with a limit on each wait. An upload that was cut off leaves chunks
without metadata, which nobody sees and a collector removes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from uuid import uuid4

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ObjectStoreConfig, RawStreamMsg, StorageType
from nats.js.client import JetStreamContext

from headrace.edge.replication import copies
from headrace.edge.structured_log import get_logger
from headrace.model.errors import Conflict, Damaged, HeadraceError, Unavailable

log = get_logger(__name__)

CHUNK_BYTES = 256 * 1024
REQUEST_TIMEOUT_S = 5.0
WRITE_LIMIT_S = 20.0
"""How long one chunk is tried."""
WRITE_PAUSE_S = 0.1
WRONG_LAST_SEQUENCE = 10071


class ObjectOptions(msgspec.Struct, frozen=True):
    max_chunk_size: int = CHUNK_BYTES


class ObjectInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Metadata of an object, in the field names of NATS object stores."""

    name: str
    bucket: str
    nuid: str
    size: int = 0
    mtime: str = ""
    chunks: int = 0
    digest: str = ""
    deleted: bool = False
    options: ObjectOptions | None = None
    metadata: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class StoredObject:
    """A live object and the sequence of its metadata, which every change of it must name."""

    info: ObjectInfo
    sequence: int
    stored_at: float
    """Unix seconds, the broker's clock: when the metadata was written last."""


class ObjectUpload:
    """Chunks on their way into a store: `write` any number of times, then `finish`. Seen by nobody until its metadata
    is written. It holds one chunk in memory."""

    def __init__(self, bucket: ObjectBucket, upload: str) -> None:
        self._bucket = bucket
        self._hash = sha256()
        self._pending = bytearray()
        self.upload = upload
        self.size = 0
        self.chunks = 0

    async def write(self, data: bytes | memoryview) -> None:
        """Returns when the store has all whole chunks of it. Unavailable when the broker does not take them."""
        self._hash.update(data)
        self.size += len(data)
        self._pending += data
        while len(self._pending) >= CHUNK_BYTES:
            chunk = bytes(memoryview(self._pending)[:CHUNK_BYTES])
            del self._pending[:CHUNK_BYTES]
            await self._store(chunk)

    async def finish(self) -> bytes:
        """Stores the rest; answers the sha256 of all."""
        if self._pending:
            await self._store(bytes(self._pending))
            self._pending.clear()
        return self._hash.digest()

    async def discard(self) -> None:
        """Removes what was stored of it; what cannot be removed now is left to the collector."""
        with contextlib.suppress(Unavailable):
            await self._bucket.drop_chunks(self.upload)

    async def _store(self, chunk: bytes) -> None:
        self.chunks += 1
        await self._bucket.store_chunk(self.upload, self.chunks, chunk)


class ObjectBucket:
    """One object store. A broker that does not answer raises Unavailable."""

    def __init__(self, stream: JetStreamContext, bucket: str) -> None:
        self._js = stream
        self.name = bucket
        self.stream = f"OBJ_{bucket}"

    @classmethod
    async def open(cls, connection: Client, bucket: str, *, replicas: int = 0) -> ObjectBucket:
        """Creates the store if it is not there; `replicas` 0: as many as `headrace.edge.replication` says."""
        stream = connection.jetstream(timeout=REQUEST_TIMEOUT_S)
        store = cls(stream, bucket)
        with broker_errors(bucket):
            try:
                await stream.stream_info(store.stream)
            except nats.js.errors.NotFoundError:
                config = ObjectStoreConfig(
                    bucket=bucket, storage=StorageType.FILE, replicas=replicas or copies(connection)
                )
                await stream.create_object_store(bucket, config)
        return store

    def new_upload(self) -> ObjectUpload:
        """Chunks of a new object."""
        return ObjectUpload(self, uuid4().hex)

    async def store_chunk(self, upload: str, number: int, chunk: bytes) -> None:
        """Stores chunk `number` (from 1), once: an answer that got lost is asked for again under the same id."""
        headers = {"Nats-Msg-Id": f"{upload}.{number}"}
        deadline = time.monotonic() + WRITE_LIMIT_S
        while True:
            try:
                with broker_errors(self.name):
                    await self._js.publish(self._chunk_subject(upload), chunk, stream=self.stream, headers=headers)
                return
            except Unavailable:
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(WRITE_PAUSE_S)

    async def commit(self, info: ObjectInfo, expected: int) -> StoredObject:
        """Writes metadata if its present sequence is `expected` (0: there is none); else Conflict."""
        headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(expected)}
        with broker_errors(self.name):
            try:
                stored = await self._js.publish(
                    self._info_subject(info.name), msgspec.json.encode(info), stream=self.stream, headers=headers
                )
            except nats.js.errors.APIError as error:
                if error.err_code == WRONG_LAST_SEQUENCE:
                    raise Conflict(f"object {info.name} was changed meanwhile", reason="REVISION_CHANGED") from error
                raise
        return StoredObject(info, int(stored.seq), time.time())

    def info_of(
        self, name: str, upload: ObjectUpload, digest: bytes, metadata: dict[str, str] | None = None
    ) -> ObjectInfo:
        """Metadata of a finished upload under that name."""
        return ObjectInfo(
            name=name,
            bucket=self.name,
            nuid=upload.upload,
            size=upload.size,
            mtime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            chunks=upload.chunks,
            digest=object_digest(digest),
            options=ObjectOptions(),
            metadata=metadata or {},
        )

    async def find(self, name: str) -> StoredObject | None:
        """The live object of that name."""
        stored = await self.newest(name)
        return stored if stored is not None and not stored.info.deleted else None

    async def newest(self, name: str) -> StoredObject | None:
        """The metadata of that name, also that of a deleted object."""
        return await self._newest_at(self._info_subject(name))

    async def delete(self, stored: StoredObject) -> bool:
        """Deletes the object if it is still as `stored` says; False when somebody changed it meanwhile."""
        gone = ObjectInfo(name=stored.info.name, bucket=self.name, nuid=stored.info.nuid, deleted=True)
        try:
            await self.commit(gone, stored.sequence)
        except Conflict:
            return False
        await self.drop_chunks(stored.info.nuid)
        return True

    async def forget(self, name: str) -> None:
        """Removes the metadata that a deleted object has left; nothing where somebody made it anew."""
        newest = await self.newest(name)
        if newest is not None and newest.info.deleted:
            with broker_errors(self.name):
                await self._js.delete_msg(self.stream, newest.sequence)

    async def list_objects(self) -> list[StoredObject]:
        """All live objects."""
        return [stored for stored in await self.list_all() if not stored.info.deleted]

    async def list_all(self) -> list[StoredObject]:
        """The metadata of all objects, also of deleted ones."""
        prefix = f"$O.{self.name}.M."
        found = [await self._newest_at(subject) for subject in await self._subjects(prefix + ">")]
        return [stored for stored in found if stored is not None]

    async def drop_chunks_without_object(self, min_age_s: float) -> int:
        """Removes what uploads that were cut off left at least that long ago; answers how many."""
        prefix = f"$O.{self.name}.C."
        uploads = {subject.removeprefix(prefix) for subject in await self._subjects(prefix + ">")}
        uploads -= {stored.info.nuid for stored in await self.list_objects()}
        dropped = 0
        for upload in sorted(uploads):
            newest = await self._last(prefix + upload)
            if newest is not None and time.time() - newest[2] > min_age_s:
                await self.drop_chunks(upload)
                dropped += 1
        return dropped

    async def is_empty(self) -> bool:
        """Whether nothing at all is stored."""
        with broker_errors(self.name):
            return int((await self._js.stream_info(self.stream)).state.messages) == 0

    async def chunks(self, info: ObjectInfo, *, first: int = 0) -> AsyncIterator[bytes]:
        """The chunks from number `first` (0: all) on, one at a time; Damaged where one is missing."""
        subject, sequence = self._chunk_subject(info.nuid), 1
        for number in range(info.chunks):
            message = await self._chunk(subject, sequence)
            if message is None:
                raise Damaged(f"chunk {number + 1} of {info.chunks} is missing", reason="CHUNK_MISSING")
            sequence = (message.seq or 0) + 1
            if number >= first:
                yield message.data or b""

    async def _chunk(self, subject: str, sequence: int) -> RawStreamMsg | None:
        """The next chunk; from whichever server has it, else from the stream's leader, which has all."""
        for direct in (True, False):
            with broker_errors(self.name), contextlib.suppress(nats.js.errors.NotFoundError):
                return await self._js.get_msg(self.stream, seq=sequence, subject=subject, next=True, direct=direct)
        return None

    async def drop_chunks(self, upload: str) -> None:
        """Removes all chunks of an upload."""
        with broker_errors(self.name):
            await self._js.purge_stream(self.stream, subject=self._chunk_subject(upload))

    async def _newest_at(self, subject: str) -> StoredObject | None:
        last = await self._last(subject)
        if last is None:
            return None
        data, sequence, stored_at = last
        try:
            return StoredObject(msgspec.json.decode(data, type=ObjectInfo), sequence, stored_at)
        except msgspec.DecodeError:
            log.warning("object metadata cannot be read; taken as deleted", subject=subject)
            return StoredObject(ObjectInfo("", self.name, "", deleted=True), sequence, stored_at)

    async def _last(self, subject: str) -> tuple[bytes, int, float] | None:
        with broker_errors(self.name):
            try:
                message = await self._js.get_last_msg(self.stream, subject)
            except nats.js.errors.NotFoundError:
                return None
        stored_at = message.time.timestamp() if message.time is not None else 0.0
        return message.data or b"", message.seq or 0, stored_at

    async def _subjects(self, pattern: str) -> list[str]:
        with broker_errors(self.name):
            info = await self._js.stream_info(self.stream, subjects_filter=pattern)
        return sorted(info.state.subjects or {})

    def _chunk_subject(self, upload: str) -> str:
        return f"$O.{self.name}.C.{upload}"

    def _info_subject(self, name: str) -> str:
        return f"$O.{self.name}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def object_digest(raw: bytes) -> str:
    """A sha256 as object metadata has it."""
    return "SHA-256=" + base64.urlsafe_b64encode(raw).decode()


@contextlib.contextmanager
def broker_errors(bucket: str) -> Iterator[None]:
    """What nats-py raises becomes Unavailable."""
    try:
        yield
    except HeadraceError:
        raise
    except (nats.errors.Error, TimeoutError) as error:
        raise Unavailable(
            f"the broker did not answer for object store {bucket}: {error!r}",
            reason="BROKER_UNREACHABLE",
            next_step="Try again; check that the NATS server runs",
        ) from error
