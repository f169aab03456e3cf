"""Bundles in the JetStream object store, named by the hex of their digest.

The format is that of NATS object stores (any NATS tool can read them), but the operations are our own: every
change of an object is a compare-and-set on its metadata message, so that two registries cannot damage each
other's work; a read takes one chunk at a time with a limit on each wait; and nothing is handed out before
both digests were checked. An upload that was cut off leaves chunks without metadata, which nobody sees and
`collector` removes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from hashlib import sha256
from tempfile import TemporaryFile
from typing import BinaryIO
from uuid import uuid4

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client
from nats.js.api import ObjectStoreConfig, StorageType
from nats.js.client import JetStreamContext

from headrace.edge.bundle import content_digest
from headrace.edge.replication import copies
from headrace.edge.structured_log import get_logger
from headrace.model.bundle_rules import MAX_BUNDLE_BYTES
from headrace.model.errors import Conflict, Damaged, HeadraceError, InvalidInput, Unavailable

log = get_logger(__name__)

CHUNK_BYTES = 256 * 1024
REQUEST_TIMEOUT_S = 5.0
CHANGE_ATTEMPTS = 10
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


@dataclass(frozen=True, slots=True)
class StoredBundle:
    """A live object and the sequence of its metadata, which every change of it must name."""

    info: ObjectInfo
    sequence: int
    stored_at: float
    """Unix seconds, the broker's clock."""


class BundleStore:
    """One object store. A broker that does not answer raises Unavailable."""

    def __init__(self, stream: JetStreamContext, bucket: str) -> None:
        self._js = stream
        self._bucket = bucket
        self._stream = f"OBJ_{bucket}"

    @classmethod
    async def open(cls, connection: Client, bucket: str, *, replicas: int = 0) -> BundleStore:
        """Creates the store if it is not there; `replicas` 0: as many as `headrace.edge.replication` says."""
        stream = connection.jetstream(timeout=REQUEST_TIMEOUT_S)
        store = cls(stream, bucket)
        with _broker_errors(bucket):
            try:
                await stream.stream_info(store._stream)
            except nats.js.errors.NotFoundError:
                config = ObjectStoreConfig(
                    bucket=bucket, storage=StorageType.FILE, replicas=replicas or copies(connection)
                )
                await stream.create_object_store(bucket, config)
        return store

    async def find(self, digest: str) -> StoredBundle | None:
        """The object of a digest, None when there is none."""
        stored = await self._newest(_name(digest))
        return stored if stored is not None and not stored.info.deleted else None

    async def ensure(self, digest: str, file: BinaryIO) -> StoredBundle:
        """Makes sure that the bundle in `file` is stored whole, and gives its metadata a new sequence.

        The new sequence keeps a delete that began earlier from taking the object away. Equal content that is
        there and intact is not sent again; a damaged object is replaced.
        """
        name = _name(digest)
        for _ in range(CHANGE_ATTEMPTS):
            newest = await self._newest(name)
            expected = newest.sequence if newest is not None else 0
            try:
                if newest is not None and not newest.info.deleted:
                    if await self._is_intact(newest, digest):
                        sequence = await self._write_info(newest.info, expected)
                        return StoredBundle(newest.info, sequence, time.time())
                    log.warning("damaged bundle is replaced", digest=digest)
                    stored = await self._upload(name, file, expected)
                    await self._drop_chunks(newest.info.nuid)
                    return stored
                return await self._upload(name, file, expected)
            except Conflict:
                continue
        raise Conflict(f"bundle {digest} kept changing", reason="REVISION_CHANGED", next_step="Push again")

    async def fetch(self, stored: StoredBundle, digest: str, into: BinaryIO) -> None:
        """Writes the checked bytes; Damaged when a chunk is missing or any byte differs."""
        info = stored.info
        if info.size > MAX_BUNDLE_BYTES:
            raise _damaged(digest, f"its metadata says {info.size:,} bytes")
        hashed = sha256()
        size = 0
        async for chunk in self._chunks(info, digest):
            size += len(chunk)
            if size > info.size:
                raise _damaged(digest, "it has more bytes than were stored")
            hashed.update(chunk)
            await asyncio.to_thread(into.write, chunk)
        if size != info.size or _object_digest(hashed.digest()) != info.digest:
            raise _damaged(digest, "its stored bytes were altered")
        try:
            found = await asyncio.to_thread(content_digest, into)
        except InvalidInput as error:
            raise _damaged(digest, f"its content cannot be read ({error.message})") from error
        if found != digest:
            raise _damaged(digest, f"its content has digest {found}")
        into.seek(0)

    async def delete(self, stored: StoredBundle) -> bool:
        """Deletes the object if it is still as `stored` says; False when somebody changed it meanwhile."""
        gone = ObjectInfo(name=stored.info.name, bucket=self._bucket, nuid=stored.info.nuid, deleted=True)
        try:
            await self._write_info(gone, stored.sequence)
        except Conflict:
            return False
        await self._drop_chunks(stored.info.nuid)
        return True

    async def list_objects(self) -> list[StoredBundle]:
        """All live objects."""
        prefix = f"$O.{self._bucket}.M."
        found = [await self._newest_at(subject) for subject in await self._subjects(prefix + ">")]
        return [stored for stored in found if stored is not None and not stored.info.deleted]

    async def drop_chunks_without_object(self, min_age_s: float) -> int:
        """Removes what uploads that were cut off left at least that long ago; answers how many."""
        prefix = f"$O.{self._bucket}.C."
        uploads = {subject.removeprefix(prefix) for subject in await self._subjects(prefix + ">")}
        uploads -= {stored.info.nuid for stored in await self.list_objects()}
        dropped = 0
        for upload in sorted(uploads):
            newest = await self._last(prefix + upload)
            if newest is not None and time.time() - newest[2] > min_age_s:
                await self._drop_chunks(upload)
                dropped += 1
        return dropped

    async def _is_intact(self, stored: StoredBundle, digest: str) -> bool:
        with TemporaryFile() as scratch:
            try:
                await self.fetch(stored, digest, scratch)
            except Damaged as error:
                log.warning("bundle is damaged", digest=digest, error=error.message)
                return False
        return True

    async def _upload(self, name: str, file: BinaryIO, expected: int) -> StoredBundle:
        upload = uuid4().hex
        hashed = sha256()
        size = chunks = 0
        file.seek(0)
        try:
            while chunk := await asyncio.to_thread(file.read, CHUNK_BYTES):
                hashed.update(chunk)
                size += len(chunk)
                chunks += 1
                with _broker_errors(self._bucket):
                    await self._js.publish(f"$O.{self._bucket}.C.{upload}", chunk, stream=self._stream)
            info = ObjectInfo(
                name=name,
                bucket=self._bucket,
                nuid=upload,
                size=size,
                mtime=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                chunks=chunks,
                digest=_object_digest(hashed.digest()),
                options=ObjectOptions(),
            )
            sequence = await self._write_info(info, expected)
        except Conflict:
            await self._drop_chunks(upload)
            raise
        return StoredBundle(info, sequence, time.time())

    async def _write_info(self, info: ObjectInfo, expected: int) -> int:
        headers = {"Nats-Rollup": "sub", "Nats-Expected-Last-Subject-Sequence": str(expected)}
        subject = self._info_subject(info.name)
        with _broker_errors(self._bucket):
            try:
                stored = await self._js.publish(
                    subject, msgspec.json.encode(info), stream=self._stream, headers=dict(headers)
                )
            except nats.js.errors.APIError as error:
                if error.err_code == WRONG_LAST_SEQUENCE:
                    raise Conflict(f"object {info.name} was changed meanwhile", reason="REVISION_CHANGED") from error
                raise
        return int(stored.seq)

    async def _chunks(self, info: ObjectInfo, digest: str) -> AsyncIterator[bytes]:
        subject = f"$O.{self._bucket}.C.{info.nuid}"
        sequence = 1
        for number in range(info.chunks):
            with _broker_errors(self._bucket):
                try:
                    message = await self._js.get_msg(self._stream, seq=sequence, subject=subject, next=True)
                except nats.js.errors.NotFoundError as error:
                    raise _damaged(digest, f"chunk {number + 1} of {info.chunks} is missing") from error
            sequence = (message.seq or 0) + 1
            yield message.data or b""

    async def _drop_chunks(self, upload: str) -> None:
        with _broker_errors(self._bucket):
            await self._js.purge_stream(self._stream, subject=f"$O.{self._bucket}.C.{upload}")

    async def _newest(self, name: str) -> StoredBundle | None:
        return await self._newest_at(self._info_subject(name))

    async def _newest_at(self, subject: str) -> StoredBundle | None:
        last = await self._last(subject)
        if last is None:
            return None
        data, sequence, stored_at = last
        try:
            return StoredBundle(msgspec.json.decode(data, type=ObjectInfo), sequence, stored_at)
        except msgspec.DecodeError:
            log.warning("object metadata cannot be read; taken as deleted", subject=subject)
            return StoredBundle(ObjectInfo("", self._bucket, "", deleted=True), sequence, stored_at)

    async def _last(self, subject: str) -> tuple[bytes, int, float] | None:
        with _broker_errors(self._bucket):
            try:
                message = await self._js.get_last_msg(self._stream, subject)
            except nats.js.errors.NotFoundError:
                return None
        stored_at = message.time.timestamp() if message.time is not None else 0.0
        return message.data or b"", message.seq or 0, stored_at

    async def _subjects(self, pattern: str) -> list[str]:
        with _broker_errors(self._bucket):
            info = await self._js.stream_info(self._stream, subjects_filter=pattern)
        return sorted(info.state.subjects or {})

    def _info_subject(self, name: str) -> str:
        return f"$O.{self._bucket}.M.{base64.urlsafe_b64encode(name.encode()).decode()}"


def _name(digest: str) -> str:
    return digest.removeprefix("sha256:")


def _object_digest(raw: bytes) -> str:
    return "SHA-256=" + base64.urlsafe_b64encode(raw).decode()


def _damaged(digest: str, problem: str) -> Damaged:
    return Damaged(
        f"bundle {digest} is damaged: {problem}",
        reason="BUNDLE_DAMAGED",
        next_step="Push the same folder again: equal content replaces what is damaged",
        metadata={"digest": digest},
    )


@contextlib.contextmanager
def _broker_errors(bucket: str) -> Iterator[None]:
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
