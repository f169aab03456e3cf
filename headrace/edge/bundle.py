"""Bundles on disk: pack a folder, inspect a bundle, unpack one safely.

Packing is deterministic: the same files (names, bytes, executable bits) give the same digest on any machine.
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import gzip
import io
import os
import secrets
import shutil
import stat
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO, cast

from headrace.edge.bundle_reader import BundleContent, BundleReader
from headrace.model.bundle_rules import (
    DEFAULT_IGNORED,
    IGNORE_FILE,
    MANIFEST_FILE,
    MAX_BUNDLE_BYTES,
    MAX_CONTENT_BYTES,
    EntryNames,
    entry_path,
    too_large,
)
from headrace.model.errors import InvalidInput, NotFound
from headrace.model.manifest import read_manifest

READ_STEP = 256 * 1024
STALE_PARTIAL_S = 600.0


@dataclass(frozen=True, slots=True)
class PackedBundle:
    """A bundle in a temporary file. Use it as a context manager, or `remove` it."""

    path: Path
    component: str
    digest: str
    bundle_bytes: int
    content_bytes: int

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> PackedBundle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


def pack_folder(folder: Path, extra: Mapping[str, bytes] | None = None) -> PackedBundle:
    """Packs a component's folder into a temporary file.

    `extra` are files that are added or put in place of the folder's. Left out: bundle_rules.DEFAULT_IGNORED
    and what `.headraceignore` in the folder lists (shell patterns, one a line, for a name or a path). Links
    to files inside the folder are packed as the file; links out of it, devices and pipes are refused.
    """
    added = dict(extra or {})
    if not folder.is_dir():
        raise NotFound(f"{folder}: no such folder", reason="NO_FOLDER", next_step="Name a component's folder")
    try:
        raw_manifest = added[MANIFEST_FILE] if MANIFEST_FILE in added else (folder / MANIFEST_FILE).read_bytes()
    except (FileNotFoundError, IsADirectoryError) as error:
        raise InvalidInput(
            f"{folder}: no {MANIFEST_FILE}",
            reason="NO_MANIFEST",
            next_step=f"Name the folder that holds {MANIFEST_FILE}",
        ) from error
    component = read_manifest(raw_manifest).component
    files: dict[str, Path | bytes] = {name: path for name, path in files_of(folder) if name not in added}
    files |= {entry_path(name): data for name, data in added.items()}
    names = EntryNames()
    for name in files:
        names.add(entry_path(name), is_folder=False)
    descriptor, target = tempfile.mkstemp(prefix="headrace-", suffix=".tar.gz")
    try:
        with os.fdopen(descriptor, "wb") as raw:
            counting = _CountingWriter(raw)
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0, compresslevel=6) as packed:
                counting.output = cast(BinaryIO, packed)
                with tarfile.open(mode="w|", fileobj=counting, format=tarfile.PAX_FORMAT) as tar:
                    for name in sorted(files):
                        _add(tar, name, files[name])
            size = raw.tell()
        if size > MAX_BUNDLE_BYTES:
            raise too_large("bundle", MAX_BUNDLE_BYTES)
    except BaseException:
        os.unlink(target)
        raise
    return PackedBundle(Path(target), component, "sha256:" + counting.hash.hexdigest(), size, counting.count)


class _CountingWriter(io.RawIOBase):
    """Hashes and counts the tar on its way into gzip; stops it at the limit."""

    def __init__(self, output: BinaryIO) -> None:
        self.output = output
        self.hash = sha256()
        self.count = 0

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.count += len(data)
        if self.count > MAX_CONTENT_BYTES:
            raise too_large("bundle.content", MAX_CONTENT_BYTES)
        self.hash.update(data)
        return self.output.write(data)


def _add(tar: tarfile.TarFile, name: str, source: Path | bytes) -> None:
    entry = tarfile.TarInfo(name)  # owner, group and time stay 0
    entry.mode = 0o644
    if isinstance(source, bytes):
        entry.size = len(source)
        tar.addfile(entry, io.BytesIO(source))
        return
    with source.open("rb") as file:
        status = os.fstat(file.fileno())
        entry.size = status.st_size
        if status.st_mode & stat.S_IXUSR:
            entry.mode = 0o755
        try:
            tar.addfile(entry, file)
        except OSError as error:
            if isinstance(error, tarfile.ReadError) or "unexpected end" in str(error):
                raise InvalidInput.at("folder", name, "changed while it was packed", next_step="Try again") from error
            raise


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and place of every file that a bundle of the folder holds, sorted; InvalidInput as `pack_folder`."""
    patterns = [*DEFAULT_IGNORED, *_ignore_lines(folder)]
    root = folder.resolve()

    def walk(directory: Path, prefix: str) -> Iterator[tuple[str, Path]]:
        for entry in sorted(os.scandir(directory), key=lambda item: item.name):
            name = prefix + entry.name
            if any(fnmatch.fnmatchcase(entry.name, one) or fnmatch.fnmatchcase(name, one) for one in patterns):
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                path = _resolve_link(path, name, root)
            elif entry.is_dir():
                yield from walk(path, name + "/")
                continue
            elif not entry.is_file():
                raise InvalidInput.at(
                    "folder", name, "is neither a file nor a folder", next_step=f"List it in {IGNORE_FILE}"
                )
            yield name, path

    yield from walk(folder, "")


def _ignore_lines(folder: Path) -> list[str]:
    try:
        text = (folder / IGNORE_FILE).read_text()
    except FileNotFoundError:
        return []
    lines = (line.strip() for line in text.splitlines())
    return [line.strip("/") for line in lines if line and not line.startswith("#")]


def _resolve_link(path: Path, name: str, root: Path) -> Path:
    target = Path(os.path.realpath(path))
    if not target.is_relative_to(root):
        raise InvalidInput.at(
            "folder",
            name,
            f"is a link out of the folder, to {target}",
            reason="BUNDLE_UNSAFE_ENTRY",
            next_step=f"Copy the file into the folder or list it in {IGNORE_FILE}",
        )
    if not target.is_file():
        raise InvalidInput.at(
            "folder", name, "is a link to something other than a file", next_step=f"List it in {IGNORE_FILE}"
        )
    return target


def inspect_bundle(path: Path) -> BundleContent:
    """Checks a bundle file whole (paths, kinds of entries, limits, manifest, lock) and answers what it is."""
    reader = BundleReader()
    with path.open("rb") as file:
        _feed(reader, file)
    return reader.finish()


def content_digest(file: BinaryIO) -> str:
    """Digest of the uncompressed tar in an open bundle file, read from its start; InvalidInput if it is damaged."""
    file.seek(0)
    reader = BundleReader()
    _feed(reader, file)
    reader.finish_tar()
    return reader.digest


def _feed(reader: BundleReader, file: BinaryIO) -> None:
    while piece := file.read(READ_STEP):
        reader.feed(piece)


def unpack_bundle(path: Path, digest: str, target: Path) -> None:
    """Unpacks a bundle whose content has that digest into `target`, which appears whole or not at all.

    Digest and every entry are checked before anything is written, and the digest again over what was
    written. A `target` that exists already is left as it is (targets are named by digest). Blocking: call it
    in a thread. InvalidInput (reason DIGEST_MISMATCH, BUNDLE_UNSAFE_PATH, ...) leaves nothing behind.
    """
    if target.is_dir():
        return
    with path.open("rb") as file:
        _check_digest(content_digest(file), digest)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale_partials(target)
        partial = target.parent / f".{target.name}.{secrets.token_hex(6)}.partial"
        partial.mkdir(mode=0o755)
        try:
            sink = _FileSink(partial)
            reader = BundleReader(sink)
            file.seek(0)
            try:
                _feed(reader, file)
                reader.finish_tar()
            finally:
                sink.close()
            _check_digest(reader.digest, digest)
            try:
                os.rename(partial, target)
            except OSError:
                if not target.is_dir():  # else somebody else was faster with the same content
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _check_digest(found: str, expected: str) -> None:
    if found != expected:
        raise InvalidInput.at(
            "bundle.digest",
            found,
            f"is not the expected {expected}",
            reason="DIGEST_MISMATCH",
            next_step="The bytes were altered on the way: fetch the bundle again",
        )


def _remove_stale_partials(target: Path) -> None:
    """What a process that was killed while unpacking left."""
    for partial in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.stat().st_mtime > STALE_PARTIAL_S:
                shutil.rmtree(partial, ignore_errors=True)


class _FileSink:
    """Writes entries below a folder that holds nothing but what it wrote itself: no links, so no way out."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._file: BinaryIO | None = None

    def folder(self, path: str) -> None:
        (self._root / path).mkdir(parents=True, exist_ok=True)

    def begin(self, path: str, size: int, *, executable: bool) -> None:
        file = self._root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        self._file = os.fdopen(os.open(file, flags, 0o755 if executable else 0o644), "wb")

    def data(self, piece: memoryview) -> None:
        assert self._file is not None
        self._file.write(piece)

    def end(self) -> None:
        self.close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
