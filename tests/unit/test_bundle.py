"""Packing, inspecting and unpacking bundles, honest and hostile."""

from __future__ import annotations

import gzip
import os
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headrace.edge.bundle import inspect_bundle, pack_folder, unpack_bundle
from headrace.edge.bundle_reader import BundleContent, BundleReader
from headrace.model.bundle_rules import MAX_ENTRIES
from headrace.model.errors import InvalidInput, NotFound
from tests.support.bundles import (
    MANIFEST,
    component_folder,
    digest_of,
    file_entry,
    raw_bundle,
    raw_tar,
    special_entry,
)

HASH = "--hash=sha256:" + "a" * 64


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@given(
    st.dictionaries(
        st.lists(st.from_regex(r"[a-zäé._ ]{1,12}", fullmatch=True), min_size=1, max_size=3)
        .filter(lambda parts: not any(part.strip(". ") == "" for part in parts))
        .map("/".join),
        st.binary(max_size=3_000),
        max_size=6,
    )
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_packed_comes_out_again(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    folder = component_folder(tmp_path_factory.mktemp("bundle") / "price")
    written = {}
    for name, data in files.items():
        try:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        except (NotADirectoryError, FileExistsError, IsADirectoryError):
            continue
        written[name] = data
    with pack_folder(folder) as packed:
        content = inspect_bundle(packed.path)
        assert (content.digest, content.content_bytes) == (packed.digest, packed.content_bytes)
        assert content.bundle_bytes == packed.bundle_bytes == packed.path.stat().st_size
        assert content.digest == digest_of(packed.path.read_bytes())
        target = folder.parent / "out"
        unpack_bundle(packed.path, packed.digest, target)
    found = tree(target)
    assert {name: found[name] for name in written if name in found} == {n: d for n, d in written.items() if n in found}
    assert set(written) - set(found) <= {name for name in written if name.split("/")[-1].endswith(".pyc")}
    assert found["component.py"] == b"x = 1\n"


def test_packing_depends_on_content_alone(tmp_path: Path) -> None:
    one = component_folder(tmp_path / "one")
    (one / "sub").mkdir()
    (one / "sub" / "run.sh").write_text("#!/bin/sh\n")
    (one / "sub" / "run.sh").chmod(0o755)
    other = tmp_path / "other"
    other.mkdir()
    (other / "sub").mkdir(mode=0o700)
    for name in ("sub/run.sh", "component.py", "component.yaml"):
        (other / name).write_bytes((one / name).read_bytes())
        os.utime(other / name, (1, 1))
    (other / "sub" / "run.sh").chmod(0o700)
    for ignored in ("__pycache__/component.pyc", ".git/config", ".venv/x", ".env", "notes.tmp", "build/x"):
        (other / ignored).parent.mkdir(exist_ok=True)
        (other / ignored).write_text("not packed")
    (one / ".headraceignore").write_text("# scratch\n*.tmp\nbuild/\n")
    (other / ".headraceignore").write_text("# scratch\n*.tmp\nbuild/\n")
    with pack_folder(one) as first, pack_folder(other) as second:
        assert first.digest == second.digest
        assert first.path.read_bytes() == second.path.read_bytes()
        unpack_bundle(first.path, first.digest, tmp_path / "out")
    assert os.access(tmp_path / "out" / "sub" / "run.sh", os.X_OK)
    assert not os.access(tmp_path / "out" / "component.py", os.X_OK)
    assert not first.path.exists()


def test_extra_files_go_into_the_bundle_and_not_into_the_folder(tmp_path: Path) -> None:
    folder = component_folder(tmp_path / "price")
    with pack_folder(folder, {"requirements.lock": f"httpx==1.0 {HASH}\n".encode()}) as packed:
        content = inspect_bundle(packed.path)
    assert content.lock is not None
    assert content.lock_digest.startswith("sha256:")
    assert sorted(os.listdir(folder)) == ["component.py", "component.yaml"]


def test_links_are_packed_as_files_inside_and_refused_outside(tmp_path: Path) -> None:
    folder = component_folder(tmp_path / "price")
    (folder / "alias.py").symlink_to("component.py")
    with pack_folder(folder) as packed:
        unpack_bundle(packed.path, packed.digest, tmp_path / "out")
    assert not (tmp_path / "out" / "alias.py").is_symlink()
    assert (tmp_path / "out" / "alias.py").read_text() == "x = 1\n"
    for target, words in (("/etc/hostname", "out of the folder"), (".", "other than a file"), ("gone", "other than")):
        (folder / "alias.py").unlink()
        (folder / "alias.py").symlink_to(target)
        with pytest.raises(InvalidInput, match=words):
            pack_folder(folder)
    (folder / "alias.py").unlink()
    os.mkfifo(folder / "pipe")
    with pytest.raises(InvalidInput, match="neither a file nor a folder"):
        pack_folder(folder)


def test_a_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"no component\.yaml"):
        pack_folder(tmp_path)
    with pytest.raises(NotFound, match="no such folder"):
        pack_folder(tmp_path / "nowhere")


def zeros(count: int, head: bytes = b"") -> Iterator[bytes]:
    """A gzip stream of `head` and then `count` times 16 MiB of zeros, made quickly."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    yield packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = block.compress(bytes(16 << 20)) + block.flush(zlib.Z_FULL_FLUSH)
    for _ in range(count):
        yield piece


def header_of(size: int, name: str = "zeros") -> bytes:
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry.tobuf(tarfile.GNU_FORMAT)


FIFTY_MIB = 50 << 20
ZERO_BOMBS = {
    "one file of 2 GB": b"".join(zeros(128, header_of(2 << 30))),
    "a file of 300 MB": b"".join(zeros(20, header_of(300 << 20))),
    "nothing but zeros": b"".join(zeros(128)),
    "a large header extension": b"".join(zeros(16, header_of(200 << 20).replace(b"0" + bytes(100), b"x" + bytes(100)))),
}


@pytest.mark.parametrize("bomb", ZERO_BOMBS.values(), ids=ZERO_BOMBS.keys())
def test_two_gigabytes_of_zeros_are_refused_quickly_in_little_memory(bomb: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(bomb)
    tracemalloc.start()
    started = time.monotonic()
    try:
        with pytest.raises(InvalidInput):
            inspect_bundle(path)
        with pytest.raises(InvalidInput):
            unpack_bundle(path, "sha256:" + "0" * 64, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < 5
    assert peak < 4 << 20
    assert os.listdir(tmp_path) == ["bomb.tar.gz"]


def test_the_limit_holds_over_many_files() -> None:
    reader = BundleReader()

    def feed_all() -> None:
        packer = zlib.compressobj(1, zlib.DEFLATED, 31)
        body = bytes(FIFTY_MIB)
        for number in range(8):
            reader.feed(packer.compress(header_of(FIFTY_MIB, f"f{number}")))
            reader.feed(packer.compress(body) + packer.flush(zlib.Z_SYNC_FLUSH))

    with pytest.raises(InvalidInput, match="more than 268,435,456 bytes"):
        feed_all()
    assert reader.content_bytes <= (256 << 20) + (64 << 10)


def read(bundle: bytes, *, step: int) -> BundleContent:
    reader = BundleReader()
    for start in range(0, len(bundle), step):
        reader.feed(bundle[start : start + step])
    return reader.finish()


def sparse_tar() -> bytes:
    entry = tarfile.TarInfo("sparse")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": "99999999999"}
    return raw_tar([file_entry("component.yaml", MANIFEST), (entry, b"")])


def cut_tar() -> bytes:
    return raw_tar([file_entry("component.yaml", MANIFEST), file_entry("a", b"x" * 4_000)])[:2_000]


HOSTILE = {
    "parent": raw_bundle(file_entry("../evil", b"x")),
    "parent deep": raw_bundle(file_entry("a/../../evil", b"x")),
    "absolute": raw_bundle(file_entry("/tmp/evil", b"x")),
    "backslash": raw_bundle(file_entry("..\\evil", b"x")),
    "symlink out": raw_bundle(special_entry("link", tarfile.SYMTYPE, "/etc/passwd")),
    "symlink then file": raw_bundle(special_entry("d", tarfile.SYMTYPE, "/tmp"), file_entry("d/evil", b"x")),
    "symlink inside": raw_bundle(special_entry("link", tarfile.SYMTYPE, "component.yaml")),
    "hard link": raw_bundle(special_entry("link", tarfile.LNKTYPE, "component.yaml")),
    "character device": raw_bundle(special_entry("zero", tarfile.CHRTYPE)),
    "block device": raw_bundle(special_entry("disk", tarfile.BLKTYPE)),
    "pipe": raw_bundle(special_entry("pipe", tarfile.FIFOTYPE)),
    "unknown type": raw_bundle(special_entry("odd", b"Z")),
    "twice": raw_bundle(file_entry("a", b"1"), file_entry("a", b"2")),
    "manifest twice": raw_bundle(file_entry("./component.yaml", MANIFEST)),
    "file as folder": raw_bundle(file_entry("a", b"1"), file_entry("a/b", b"2")),
    "case clash": raw_bundle(file_entry("Data.json", b"1"), file_entry("data.json", b"2")),
    "case clash of folders": raw_bundle(file_entry("a/x", b"1"), file_entry("A/y", b"2")),
    "deep": raw_bundle(file_entry("d/" * 40 + "x", b"")),
    "too many": raw_bundle(*[file_entry(f"f{number}") for number in range(MAX_ENTRIES + 1)]),
    "sparse": gzip.compress(sparse_tar()),
    "no manifest": raw_bundle(file_entry("component.py", b""), manifest=None),
    "manifest in a folder": raw_bundle(file_entry("price/component.yaml", MANIFEST), manifest=None),
    "bad yaml": raw_bundle(manifest=b"name: [\n"),
    "large manifest": raw_bundle(manifest=b"# " + b"x" * 300_000 + b"\n" + MANIFEST),
    "unknown field": raw_bundle(manifest=MANIFEST + b"surprise: 1\n"),
    "unknown kind": raw_bundle(manifest=MANIFEST.replace(b"action", b"actor")),
    "no lock": raw_bundle(manifest=MANIFEST + b"requirements: [httpx]\n"),
    "lock of others": raw_bundle(
        file_entry("requirements.lock", f"anyio==4.0 {HASH}\n".encode()), manifest=MANIFEST + b"requirements: [httpx]\n"
    ),
    "lock with index": raw_bundle(file_entry("requirements.lock", b"--index-url x\n")),
    "schemas not JSON": raw_bundle(file_entry("headrace.schemas.json", b"{")),
    "schemas of others": raw_bundle(file_entry("headrace.schemas.json", b"{}")),
    "not gzip": raw_tar([file_entry("component.yaml", MANIFEST)]),
    "zip": b"PK\x03\x04" + bytes(100),
    "empty": b"",
    "gzip of text": gzip.compress(b"hello" * 300),
    "gzip cut off": raw_bundle()[:-10],
    "tar cut off": gzip.compress(cut_tar()),
    "more behind gzip": raw_bundle() + b"more",
    "two gzips": raw_bundle() + raw_bundle(),
    "more behind tar": gzip.compress(raw_tar([file_entry("component.yaml", MANIFEST)]) + b"more"),
}


@pytest.mark.parametrize("bundle", HOSTILE.values(), ids=HOSTILE.keys())
def test_bad_bundles_are_refused_and_nothing_is_written(bundle: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(bundle)
    with pytest.raises(InvalidInput) as caught:
        inspect_bundle(path)
    assert caught.value.reason
    with pytest.raises(InvalidInput):
        read(bundle, step=1 if len(bundle) < 5_000 else 10_000)
    assert os.listdir(tmp_path) == ["bad.tar.gz"]


UNSAFE = [name for name in HOSTILE if "manifest" not in name and "schemas" not in name and "lock" not in name]
UNSAFE = [name for name in UNSAFE if name not in ("bad yaml", "unknown field", "unknown kind")]


@pytest.mark.parametrize("name", UNSAFE)
def test_unpacking_refuses_what_is_unsafe_even_with_the_right_digest(name: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.tar.gz"
    path.write_bytes(HOSTILE[name])
    try:
        digest = digest_of(HOSTILE[name])
    except (OSError, EOFError, zlib.error):
        digest = "sha256:" + "0" * 64
    with pytest.raises(InvalidInput):
        unpack_bundle(path, digest, tmp_path / "cache" / "out")
    assert [entry for entry in tmp_path.rglob("*") if entry.is_file()] == [path]
    assert not (tmp_path / "cache" / "out").exists()


def test_a_wrong_digest_writes_nothing(tmp_path: Path) -> None:
    with pack_folder(component_folder(tmp_path / "price")) as packed:
        with pytest.raises(InvalidInput) as caught:
            unpack_bundle(packed.path, "sha256:" + "0" * 64, tmp_path / "out")
        assert caught.value.reason == "DIGEST_MISMATCH"
        assert os.listdir(tmp_path) == ["price"]
        unpack_bundle(packed.path, packed.digest, tmp_path / "out")
        (tmp_path / "out" / "component.py").write_text("mark")
        unpack_bundle(packed.path, packed.digest, tmp_path / "out")  # there already: left as it is
        assert (tmp_path / "out" / "component.py").read_text() == "mark"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_an_altered_bundle_is_never_taken_for_the_original(data: st.DataObject) -> None:
    bundle = raw_bundle(file_entry("component.py", b"x = 1\n" * 20))
    digest = digest_of(bundle)
    position = data.draw(st.integers(0, len(bundle) - 1))
    altered = bytearray(bundle)
    altered[position] ^= data.draw(st.integers(1, 255))
    try:
        content = read(bytes(altered), step=len(altered))
    except InvalidInput:
        return
    assert content.digest == digest  # the same tar, only packed otherwise


@given(st.binary(max_size=1_000), st.booleans())
@settings(max_examples=150, deadline=None)
def test_random_bytes_are_refused_as_invalid(raw: bytes, packed: bool) -> None:
    with pytest.raises(InvalidInput):
        read(gzip.compress(raw) if packed else raw, step=100)


def test_tars_of_other_tools_are_taken(tmp_path: Path) -> None:
    long_name = "deep/" * 20 + "x" * 150 + ".py"
    for format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        top = special_entry(".", tarfile.DIRTYPE)
        raw = raw_tar([top, file_entry("./component.yaml", MANIFEST), file_entry(long_name, b"y = 1\n")], format=format)
        path = tmp_path / f"{format}.tar.gz"
        path.write_bytes(gzip.compress(raw))
        content = inspect_bundle(path)
        assert content.manifest.component == "price"
        unpack_bundle(path, content.digest, tmp_path / str(format))
        assert (tmp_path / str(format) / long_name).read_bytes() == b"y = 1\n"
