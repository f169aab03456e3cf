"""A lock is of the requirements it lies beside."""

from __future__ import annotations

import pytest

from headrace.model.bundle_rules import check_lock, check_lock_covers
from headrace.model.errors import InvalidInput

HASH = "--hash=sha256:" + "a" * 64
LOCK = f"""\
# made by hand
anyio==4.0 {HASH}
Typing_Extensions==4.12.0 ; python_version<'3.13' \\
    {HASH}
psycopg[binary]==3.3.9 \\
    {HASH}
""".encode()


@pytest.mark.parametrize(
    "requirement",
    ["anyio", "anyio>=3", "AnyIO==4.0", "typing.extensions", "psycopg[binary]==3.3.9", "psycopg (==3.3.9)",
     "anyio==4.*", "other; sys_platform=='win32'"],
)  # fmt: skip
def test_what_is_locked_is_taken(requirement: str) -> None:
    check_lock(LOCK)
    check_lock_covers([requirement], LOCK)


@pytest.mark.parametrize(
    ("requirement", "words"),
    [
        ("httpx", "is not in"),
        ("anyio-extras", "is not in"),
        ("anyio==3.9", "pins, 4.0"),
        ("psycopg==3.3", "pins, 3.3.9"),
    ],
)
def test_what_is_not_is_named(requirement: str, words: str) -> None:
    with pytest.raises(InvalidInput, match=words) as refused:
        check_lock_covers(["anyio", requirement], LOCK)
    assert (refused.value.reason, refused.value.violations[0].field) == ("LOCK_MISMATCH", "requirements[1]")
