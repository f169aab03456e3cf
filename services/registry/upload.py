"""Receives one pushed bundle: checked and hashed while it streams in, kept in a bounded, nameless temporary file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from tempfile import TemporaryFile
from typing import BinaryIO

from headrace.api.registry.v1 import registry_pb2
from headrace.edge.bundle_reader import BundleContent, BundleReader
from headrace.model.errors import DeadlineExceeded, Exhausted, InvalidInput
from headrace.model.names import check_name, is_digest

MAX_CHUNK_BYTES = 1024 * 1024
PART_TIMEOUT_S = 30.0
"""How long a client may be silent between two parts."""
DRAIN_BYTES = 64 * 1024 * 1024
DRAIN_LIMIT_S = 5.0


@dataclass(frozen=True, slots=True)
class ReceivedBundle:
    """A checked bundle; `file` ends with the context it was received in."""

    header: registry_pb2.PushHeader
    content: BundleContent
    file: BinaryIO


@asynccontextmanager
async def received_bundle(parts: AsyncIterator[registry_pb2.PushRevisionRequest]) -> AsyncIterator[ReceivedBundle]:
    """Reads header and chunks; InvalidInput as soon as the bytes show what is wrong with them."""
    with TemporaryFile() as file:  # has no name: nothing is left when the process is killed
        try:
            header, content = await _receive(parts, file)
        except (InvalidInput, Exhausted):
            await _drain(parts)
            raise
        yield ReceivedBundle(header, content, file)


async def _receive(
    parts: AsyncIterator[registry_pb2.PushRevisionRequest], file: BinaryIO
) -> tuple[registry_pb2.PushHeader, BundleContent]:
    header = await _header(parts)
    reader = BundleReader()
    while (part := await _next(parts)) is not None:
        if part.WhichOneof("part") != "chunk":
            raise InvalidInput("header: only the first message may hold it", reason="BAD_PUSH")
        if len(part.chunk) > MAX_CHUNK_BYTES:
            raise InvalidInput(
                f"chunk: {len(part.chunk):,} bytes, more than {MAX_CHUNK_BYTES:,}",
                reason="BAD_PUSH",
                next_step="Send smaller chunks",
            )
        await asyncio.to_thread(_take, reader, file, part.chunk)
    content = await asyncio.to_thread(reader.finish)
    _compare(header, content)
    return header, content


async def _drain(parts: AsyncIterator[registry_pb2.PushRevisionRequest]) -> None:
    """Reads on for a while: a client whose write fails reports that instead of the reason (grpc's does)."""
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_LIMIT_S):
            async for part in parts:
                drained += len(part.chunk)
                if drained > DRAIN_BYTES:
                    return
    except TimeoutError:
        return


def _take(reader: BundleReader, file: BinaryIO, chunk: bytes) -> None:
    reader.feed(chunk)
    try:
        file.write(chunk)
    except OSError as error:
        raise Exhausted(
            f"the registry has no room for the bundle: {error.strerror}",
            reason="REGISTRY_DISK_FULL",
            next_step="Free space in the registry's temporary folder, then push again",
        ) from error


async def _header(parts: AsyncIterator[registry_pb2.PushRevisionRequest]) -> registry_pb2.PushHeader:
    first = await _next(parts)
    if first is None or first.WhichOneof("part") != "header":
        raise InvalidInput(
            "header: the first message must hold it", reason="BAD_PUSH", next_step='Send {"header": {...}} first'
        )
    check_name("header.component", first.header.component)
    if first.header.digest and not is_digest(first.header.digest):
        raise InvalidInput.at(
            "header.digest", first.header.digest, "is not sha256: and 64 hex digits", next_step="It may be left out"
        )
    return first.header


async def _next(
    parts: AsyncIterator[registry_pb2.PushRevisionRequest],
) -> registry_pb2.PushRevisionRequest | None:
    try:
        async with asyncio.timeout(PART_TIMEOUT_S):
            return await anext(parts, None)
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"push: nothing came for {PART_TIMEOUT_S:.0f} s", reason="PUSH_STALLED", next_step="Push again"
        ) from error


def _compare(header: registry_pb2.PushHeader, content: BundleContent) -> None:
    if header.digest and header.digest != content.digest:
        raise InvalidInput.at(
            "header.digest",
            header.digest,
            f"is not the digest of the bytes that came, {content.digest}",
            reason="DIGEST_MISMATCH",
            next_step="The bytes were altered on the way, or the digest is not that of the uncompressed tar",
        )
    if header.component != content.manifest.component:
        raise InvalidInput.at(
            "header.component",
            header.component,
            f"is not the name in component.yaml, {content.manifest.component!r}",
            reason="NAME_MISMATCH",
            next_step="Correct one of them",
        )
