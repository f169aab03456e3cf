"""Names in bundles and lock files."""

from __future__ import annotations

from contextlib import suppress
from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.bundle_rules import MAX_ENTRIES, EntryNames, check_lock, entry_path
from headrace.model.errors import InvalidInput

PARTS = st.sampled_from(["a", "b.py", ".", "..", "", "c d", "ä", "\\", "\0", "x" * 300, "..."])


@given(st.lists(PARTS, max_size=6).map("/".join) | st.text(max_size=40))
def test_a_taken_name_stays_inside(name: str) -> None:
    try:
        path = entry_path(name)
    except InvalidInput:
        return
    pure = PurePosixPath(path)
    assert not pure.is_absolute()
    assert ".." not in pure.parts
    assert not path.startswith("/")
    assert "\0" not in path
    assert entry_path(path) == path if path else name.strip("./") == ""


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "a\\..\\x", "a\nb", "a/" * 40 + "b"])
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidInput):
        entry_path(name)


@pytest.mark.parametrize(("name", "path"), [("./a/b", "a/b"), ("a//b/", "a/b"), (".", ""), ("a..b", "a..b")])
def test_names_are_normalised(name: str, path: str) -> None:
    assert entry_path(name) == path


def test_each_path_may_be_there_once() -> None:
    names = EntryNames()
    names.add("a", is_folder=True)
    names.add("a/b", is_folder=False)
    names.add("a", is_folder=True)  # a folder may be named again
    for path, is_folder in (("a/b", False), ("a", False), ("a/b", True), ("a/b/c", False)):
        with pytest.raises(InvalidInput):
            names.add(path, is_folder=is_folder)


def test_entries_are_counted() -> None:
    names = EntryNames()
    for number in range(MAX_ENTRIES):
        names.add(f"f{number}", is_folder=False)
    with pytest.raises(InvalidInput, match="above the limit"):
        names.add("one-more", is_folder=False)


HASH = "--hash=sha256:" + "a" * 64
GOOD_LOCK = f"""# written by a tool
httpx==0.28.1 \\
    {HASH} \\
    {HASH}
    # via -r in
colorama==0.4.6 ; sys_platform == 'win32' \\
    {HASH}
pydantic[email]==2.1.0 {HASH}  # a remark
"""


def test_a_lock_with_hashes_is_taken() -> None:
    check_lock(GOOD_LOCK.encode())
    check_lock(b"")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--index-url https://example.org", "is an option"),
        ("-e .", "is an option"),
        (f"--extra-index-url=x {HASH}", "is an option"),
        ("httpx==1.0", "has no sha256 hash"),
        (f"httpx>=1.0 {HASH}", "does not pin"),
        (f"httpx @ https://example.org/x.whl {HASH}", "does not pin"),
        ("httpx==1.0 --hash=md5:" + "a" * 32, "is not a sha256 hash"),
        (f"httpx==1.0 {HASH} --no-binary=:all:", "is not a sha256 hash"),
        (f"httpx==1.0 \\\n  --index-url=x {HASH}", "is not a sha256 hash"),
        ("httpx==1.0 \\", "has no sha256 hash"),
    ],
)
def test_a_lock_that_does_not_pin_is_refused_with_its_line(line: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check_lock((GOOD_LOCK + line + "\n").encode())
    assert words in caught.value.message
    assert caught.value.message.startswith("requirements.lock:")


@given(st.binary(max_size=200))
def test_any_lock_is_taken_or_refused_as_invalid(raw: bytes) -> None:
    with suppress(InvalidInput):
        check_lock(raw)
