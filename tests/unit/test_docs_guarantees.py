"""Every test that docs/guarantees.md names exists."""

from __future__ import annotations

import re
from pathlib import Path

DEFINED = re.compile(r"^ *(?:async )?def (\w+)\(", re.MULTILINE)
ROOT = Path(__file__).parents[2]
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ANYTHING_LIKE_IT = re.compile(r"tests/[\w/]+\.py::\w*")


def test_every_test_that_is_named_exists() -> None:
    text = (ROOT / "docs" / "guarantees.md").read_text()
    named = NAMED.findall(text)
    assert len(named) >= 30
    assert len(ANYTHING_LIKE_IT.findall(text)) == len(named)
    missing = [f"{file}::{name}" for file, name in named if name not in functions_of(ROOT / file)]
    assert missing == []


def functions_of(file: Path) -> set[str]:
    return set(DEFINED.findall(file.read_text())) if file.exists() else set()
