"""Component folders and hand-made (also hostile) bundles for tests."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

MANIFEST = b"name: price\nfunctions:\n  price: {kind: action}\n"


def component_folder(
    folder: Path, *, name: str = "price", version: str = "", source: str = "x = 1\n", padding: bytes = b""
) -> Path:
    """A small component; `source` makes its content differ, `padding` makes it large."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"name: {name}", *([f"version: {version}"] if version else [])]
    lines += ["functions:", f"  {name}: {{kind: action, title: A test, in: {{type: object}}}}"]
    (folder / "component.yaml").write_text("\n".join(lines) + "\n")
    (folder / "component.py").write_text(source)
    if padding:
        (folder / "padding.bin").write_bytes(padding)
    return folder


def file_entry(name: str, data: bytes = b"", *, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    entry.mode = mode
    return entry, data


def special_entry(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A link, device or pipe."""
    entry = tarfile.TarInfo(name)
    entry.type = kind
    entry.linkname = target
    return entry, b""


def raw_tar(entries: Iterable[tuple[tarfile.TarInfo, bytes]], *, format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for entry, data in entries:
            tar.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def raw_bundle(*entries: tuple[tarfile.TarInfo, bytes], manifest: bytes | None = MANIFEST) -> bytes:
    """A bundle of these entries, with a manifest first unless None."""
    first = [file_entry("component.yaml", manifest)] if manifest is not None else []
    return gzip.compress(raw_tar([*first, *entries]), mtime=0)


def digest_of(bundle: bytes) -> str:
    """Digest as the design says: sha256 of the uncompressed tar."""
    return "sha256:" + sha256(gzip.decompress(bundle)).hexdigest()
