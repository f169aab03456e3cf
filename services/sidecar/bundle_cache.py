"""Bundles on this machine's disk, by digest: fetched once, shared by all sidecars, checked before each use.

    <cache>/bundles/<hex>/          the unpacked bundle
    <cache>/bundles/<hex>.files     entry point and sha256 of each file, written after the unpacking
    <cache>/bundles/<hex>.lock      who fetches

The digest of the archive is checked before anything is unpacked (headrace.edge.bundle); afterwards the list
of files tells whether the folder is still what was unpacked, bytecode included, which is made at once for that. A
folder that is complete needs no registry. Files are read-only: a component writes elsewhere, and one that does away
with its own folder all the same finds it as it was when it is started again.
"""

from __future__ import annotations

import asyncio
import compileall
import errno
import json
import os
import shutil
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from headrace.edge.structured_log import get_logger
from headrace.model.errors import Damaged, Exhausted, HeadraceError, InvalidInput, NotFound, Unavailable
from services.sidecar.file_lock import locked

log = get_logger(__name__)

DOWNLOAD_LIMIT_S = 60.0


@dataclass(frozen=True, slots=True)
class CachedBundle:
    """An unpacked bundle and its entry point (`module:attribute`)."""

    path: Path
    entrypoint: str


class BundleCache:
    """The bundles under one cache directory; `registry` is the gRPC target to fetch from."""

    def __init__(self, cache_dir: Path, registry: str) -> None:
        self._folder = cache_dir / "bundles"
        self._registry = registry

    def find(self, digest: str) -> CachedBundle | None:
        """The unpacked bundle if it is here and unchanged, else None."""
        target = self._target(digest)
        try:
            expected = json.loads(_list_path(target).read_bytes())
            if _list_files(target) != expected["files"]:
                return None
            return CachedBundle(target, str(expected["entrypoint"]))
        except (OSError, ValueError, KeyError):
            return None

    async def fetch(self, digest: str) -> CachedBundle:
        """The unpacked, verified bundle; downloaded when it is not here. Raises a domain error otherwise."""
        found = self.find(digest)
        if found is not None:
            return found
        target = self._target(digest)
        async with locked(target.with_suffix(".lock"), DOWNLOAD_LIMIT_S):
            found = self.find(digest)  # somebody else may have fetched it meanwhile
            if found is not None:
                return found
            return await self._download_and_unpack(digest, target)

    async def _download_and_unpack(self, digest: str, target: Path) -> CachedBundle:
        if target.exists():
            log.warning("cached bundle is not what was unpacked; fetching it again", digest=digest)
            _list_path(target).unlink(missing_ok=True)
            aside = target.with_suffix(f".broken{os.getpid()}")
            os.rename(target, aside)
            shutil.rmtree(aside, ignore_errors=True)
        archive = target.with_suffix(f".part{os.getpid()}")
        try:
            async with asyncio.timeout(DOWNLOAD_LIMIT_S):
                await self._download(digest, archive)
            return await asyncio.to_thread(self.admit, archive, digest)
        except TimeoutError as error:
            raise Unavailable(
                f"bundle {digest} was not downloaded from {self._registry} within {DOWNLOAD_LIMIT_S:g} s",
                reason="BUNDLE_NOT_FETCHED",
                next_step="Check that the registry answers",
            ) from error
        finally:
            archive.unlink(missing_ok=True)

    def admit(self, archive: Path, digest: str) -> CachedBundle:
        """Verifies an archive against the digest and unpacks it into the cache; blocking."""
        from headrace.edge.bundle import unpack_bundle

        target = self._target(digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        unpack_bundle(archive, digest, target)
        compileall.compile_dir(target, quiet=2)
        _make_read_only(target)
        listing = _list_path(target)
        partial = listing.with_suffix(f".part{os.getpid()}")
        entrypoint = _read_entrypoint(target)
        partial.write_text(json.dumps({"entrypoint": entrypoint, "files": _list_files(target)}))
        os.replace(partial, listing)
        return CachedBundle(target, entrypoint)

    async def _download(self, digest: str, archive: Path) -> None:
        import grpc

        from headrace.api.registry.v1 import registry_pb2, registry_pb2_grpc
        from headrace.edge.grpc_channel import open_channel

        async with open_channel(self._registry) as channel:
            stub = registry_pb2_grpc.RegistryServiceStub(channel)  # type: ignore[no-untyped-call]
            call = stub.DownloadBundle(registry_pb2.DownloadBundleRequest(digest=digest), timeout=DOWNLOAD_LIMIT_S)
            try:
                with open(archive, "wb") as file:
                    async for part in call:
                        file.write(part.chunk)
            except grpc.aio.AioRpcError as error:
                raise _refused(digest, self._registry, error.code().name, error.details() or "") from error
            finally:
                call.cancel()

    def _target(self, digest: str) -> Path:
        return self._folder / digest.removeprefix("sha256:")


def _refused(digest: str, registry: str, code: str, details: str) -> HeadraceError:
    kind = {"NOT_FOUND": NotFound, "DATA_LOSS": Damaged}.get(code, Unavailable)
    return kind(
        f"the registry at {registry} did not give bundle {digest}: {code}: {details}",
        reason="BUNDLE_NOT_FETCHED",
        next_step="Check that the registry runs and still has the revision",
    )


def disk_refuses(error: OSError) -> HeadraceError:
    """What the operating system refused, told to people: a full disk, or else that the cache cannot be used."""
    where = f" at {error.filename}" if error.filename else ""
    said = f"this machine's cache cannot be written{where}: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Exhausted(said, reason="DISK_FULL", next_step="Make room on the agent's disk, then try again")
    return Unavailable(said, reason="CACHE_UNUSABLE", next_step="Check the disk and the rights of the agent's cache")


def _list_path(target: Path) -> Path:
    return target.with_suffix(".files")


def _list_files(root: Path) -> dict[str, str]:
    listing: dict[str, str] = {}
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            content = os.readlink(path).encode() if path.is_symlink() else path.read_bytes()
            listing[str(path.relative_to(root))] = sha256(content).hexdigest()
    return listing


def _make_read_only(root: Path) -> None:
    """Files, not folders, so that whoever owns the cache can delete it."""
    for folder, _, files in os.walk(root):
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(path.stat().st_mode & ~0o222)


def _read_entrypoint(target: Path) -> str:
    from headrace.model.manifest import read_entrypoint

    try:
        return read_entrypoint((target / "component.yaml").read_bytes())
    except OSError as error:
        raise InvalidInput(f"component.yaml cannot be read: {error}", reason="BAD_MANIFEST") from error
