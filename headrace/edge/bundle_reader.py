"""Reads a bundle as a stream of bytes, with bounded memory, refusing whatever is not plain files and folders.

Own walk over the tar instead of `tarfile`: that module reads header extensions of any size into memory,
follows sparse files and knows links and devices, all of which a hostile bundle could use.
"""

from __future__ import annotations

import tarfile
import zlib
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from headrace.model.bundle_rules import (
    LOCK_FILE,
    MANIFEST_FILE,
    MAX_BUNDLE_BYTES,
    MAX_CONTENT_BYTES,
    READ_WHOLE,
    SCHEMAS_FILE,
    EntryNames,
    check_lock,
    check_lock_covers,
    entry_path,
    too_large,
)
from headrace.model.errors import InvalidInput
from headrace.model.manifest import Manifest, merge_schemas, read_manifest, read_schemas

BLOCK = 512
INFLATE_STEP = 64 * 1024
MAX_EXTENSION_BYTES = 64 * 1024
MAX_PADDING_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class BundleContent:
    """What a checked bundle is. `manifest` has the schemas of typed functions merged in."""

    digest: str
    """`sha256:` and hex, of the uncompressed tar."""
    bundle_bytes: int
    content_bytes: int
    manifest: Manifest
    lock: bytes | None

    @property
    def lock_digest(self) -> str:
        return "sha256:" + sha256(self.lock).hexdigest() if self.lock is not None else ""


class EntrySink(Protocol):
    """Takes the entries of a bundle in order; paths are checked and relative."""

    def folder(self, path: str) -> None: ...
    def begin(self, path: str, size: int, *, executable: bool) -> None: ...
    def data(self, piece: memoryview) -> None: ...
    def end(self) -> None: ...


class BundleReader:
    """Feed compressed bytes, then `finish`. Any refusal is InvalidInput, as early as the bytes show it.

    Memory: one inflate step, one header, and the three files that are read whole (limits in bundle_rules).
    """

    def __init__(self, sink: EntrySink | None = None) -> None:
        self._inflate = zlib.decompressobj(wbits=31)
        self._hash = sha256()
        self._walk = _TarWalk(sink)
        self.bundle_bytes = 0
        self.content_bytes = 0

    def feed(self, data: bytes) -> None:
        """The next compressed bytes."""
        if not data:
            return
        self.bundle_bytes += len(data)
        if self.bundle_bytes > MAX_BUNDLE_BYTES:
            raise too_large("bundle", MAX_BUNDLE_BYTES)
        if self._inflate.eof:
            raise _broken("there are bytes behind the end of the gzip stream")
        pending, more = data, True
        while (pending or more) and not self._inflate.eof:
            try:
                piece = self._inflate.decompress(pending, INFLATE_STEP)
            except zlib.error as error:
                raise _broken(f"not a gzip stream ({error})") from error
            pending = self._inflate.unconsumed_tail
            more = len(piece) == INFLATE_STEP  # it may hold back output without input
            self._take(piece)
        if self._inflate.unused_data:
            raise _broken("there are bytes behind the end of the gzip stream")

    def _take(self, piece: bytes) -> None:
        self.content_bytes += len(piece)
        if self.content_bytes > MAX_CONTENT_BYTES:
            raise too_large("bundle.content", MAX_CONTENT_BYTES)
        self._hash.update(piece)
        self._walk.feed(piece)

    @property
    def digest(self) -> str:
        """Of what was read so far."""
        return "sha256:" + self._hash.hexdigest()

    def finish_tar(self) -> None:
        """Checks that gzip stream and tar are whole."""
        if not self._inflate.eof:
            raise _broken("the gzip stream is cut off" if self.bundle_bytes else "it is empty")
        self._walk.finish()

    def finish(self) -> BundleContent:
        """Checks what must be in a bundle and answers what it is."""
        self.finish_tar()
        kept = self._walk.kept
        if MANIFEST_FILE not in kept:
            raise InvalidInput(
                f"bundle: no {MANIFEST_FILE} at its top",
                reason="NO_MANIFEST",
                next_step=f"Push the folder that holds {MANIFEST_FILE}",
            )
        manifest = read_manifest(bytes(kept[MANIFEST_FILE]))
        if SCHEMAS_FILE in kept:
            manifest = merge_schemas(manifest, read_schemas(bytes(kept[SCHEMAS_FILE])))
        lock = bytes(kept[LOCK_FILE]) if LOCK_FILE in kept else None
        if lock is not None:
            check_lock(lock)
            check_lock_covers(manifest.requirements, lock)
        elif manifest.requirements:
            raise InvalidInput(
                f"bundle: requirements without {LOCK_FILE}",
                reason="NO_LOCK",
                next_step="Push with `headrace component push`, which writes it",
            )
        return BundleContent(self.digest, self.bundle_bytes, self.content_bytes, manifest, lock)


class _TarWalk:
    """Push parser of a tar: one header or one piece of a body at a time."""

    def __init__(self, sink: EntrySink | None) -> None:
        self.kept: dict[str, bytearray] = {}
        self._sink = sink
        self._names = EntryNames()
        self._header = bytearray()
        self._body_left = 0
        self._padding_left = 0
        self._keeping: bytearray | None = None
        self._extension: bytearray | None = None
        self._extension_type = b""
        self._next_path = ""
        self._next_size = -1
        self._in_file = False
        self._ended = False
        self._trailer = 0

    def feed(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._ended:
                self._check_trailer(view)
                return
            if self._body_left:
                piece, view = view[: self._body_left], view[self._body_left :]
                self._body_left -= len(piece)
                self._take_body(piece)
                if not self._body_left:
                    self._end_body()
            elif self._padding_left:
                skipped = min(self._padding_left, len(view))
                self._padding_left -= skipped
                view = view[skipped:]
            else:
                wanted = BLOCK - len(self._header)
                self._header += view[:wanted]
                view = view[wanted:]
                if len(self._header) == BLOCK:
                    block = bytes(self._header)
                    self._header.clear()
                    self._take_header(block)

    def finish(self) -> None:
        if not self._ended:
            raise _broken("the tar is cut off")

    def _check_trailer(self, view: memoryview) -> None:
        self._trailer += len(view)
        if self._trailer > MAX_PADDING_BYTES or any(view):
            raise _broken("there are bytes behind the end of the tar")

    def _take_header(self, block: bytes) -> None:
        if block.count(0) == BLOCK:
            self._ended = True
            return
        try:
            entry = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        except (tarfile.HeaderError, UnicodeDecodeError, ValueError) as error:
            raise _broken(f"not a tar ({error})") from error
        if entry.size < 0:
            raise _broken("a negative size in the tar")
        if entry.type in (b"x", b"g", b"L", b"K"):
            self._begin_extension(entry)
            return
        size = self._next_size if self._next_size >= 0 else entry.size
        name = self._next_path or entry.name
        self._next_path, self._next_size = "", -1
        self._begin_entry(entry, name, size)

    def _begin_extension(self, entry: tarfile.TarInfo) -> None:
        if entry.size > MAX_EXTENSION_BYTES:
            raise _broken(f"a header extension of {entry.size:,} bytes")
        self._extension = bytearray()
        self._extension_type = entry.type
        self._begin_body(entry.size)

    def _begin_entry(self, entry: tarfile.TarInfo, name: str, size: int) -> None:
        if entry.type not in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE):
            kind = _KINDS.get(entry.type, f"an entry of type {entry.type!r}")
            raise InvalidInput.at(
                "bundle.entry",
                name,
                f"is {kind}; a bundle holds regular files and folders only",
                reason="BUNDLE_UNSAFE_ENTRY",
                next_step="Replace it by a regular file",
            )
        path = entry_path(name)
        is_folder = entry.type == tarfile.DIRTYPE
        if is_folder and not path:
            return  # the top itself, as `tar -C folder .` writes it
        self._names.add(path, is_folder=is_folder)
        if is_folder:
            if size:
                raise _broken(f"folder {path!r} with a body")
            if self._sink:
                self._sink.folder(path)
            return
        if size > MAX_CONTENT_BYTES:
            raise too_large(f"bundle.entry {path!r}", MAX_CONTENT_BYTES)
        if path in READ_WHOLE:
            if size > READ_WHOLE[path]:
                raise too_large(path, READ_WHOLE[path])
            self._keeping = self.kept.setdefault(path, bytearray())
        self._in_file = True
        if self._sink:
            self._sink.begin(path, size, executable=bool(entry.mode & 0o100))
        self._begin_body(size)

    def _begin_body(self, size: int) -> None:
        self._body_left = size
        self._padding_left = -size % BLOCK
        if not size:
            self._end_body()

    def _take_body(self, piece: memoryview) -> None:
        if self._extension is not None:
            self._extension += piece
            return
        if self._keeping is not None:
            self._keeping += piece
        if self._sink:
            self._sink.data(piece)

    def _end_body(self) -> None:
        if self._extension is not None:
            self._end_extension(bytes(self._extension))
            self._extension = None
        elif self._in_file:
            self._in_file = False
            self._keeping = None
            if self._sink:
                self._sink.end()

    def _end_extension(self, raw: bytes) -> None:
        try:
            if self._extension_type == b"L":
                self._next_path = raw.rstrip(b"\0").decode()
            elif self._extension_type in (b"x", b"g"):
                self._take_records(_pax_records(raw))
        except (ValueError, UnicodeDecodeError) as error:
            raise _broken(f"a damaged header extension ({error})") from error

    def _take_records(self, records: dict[str, str]) -> None:
        if any(key.startswith("GNU.sparse") for key in records):
            raise _broken("a sparse file")
        if self._extension_type == b"g":
            if "path" in records or "size" in records:
                raise _broken("a global header that renames entries")
            return
        self._next_path = records.get("path", self._next_path)
        if "size" in records:
            if not records["size"].isascii() or not records["size"].isdigit():
                raise ValueError("size is not a number")
            self._next_size = int(records["size"])


_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}


def _pax_records(raw: bytes) -> dict[str, str]:
    """`<length> <key>=<value>\\n`, length in decimal and counting the whole record."""
    records: dict[str, str] = {}
    position = 0
    while position < len(raw):
        space = raw.index(b" ", position, position + 10)
        length = int(raw[position:space])
        record = raw[space + 1 : position + length]
        if position + length > len(raw) or not record.endswith(b"\n"):
            raise ValueError("a record is cut off")
        key, equals, value = record[:-1].partition(b"=")
        if not equals:
            raise ValueError("a record without a value")
        records[key.decode()] = value.decode()
        position += length
    return records


def _broken(problem: str) -> InvalidInput:
    return InvalidInput(
        f"bundle: {problem}", reason="BAD_BUNDLE", next_step="Send a gzip-compressed tar of the component's folder"
    )
