"""What all robustness tests share."""

from __future__ import annotations

import os

import pytest

ROUNDS = int(os.environ.get("HEADRACE_SOAK_ROUNDS", "0"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A long form takes as long as it is asked to: a test's own limit is meant for its short form."""
    if not ROUNDS:
        return
    for item in items:
        item.own_markers = [mark for mark in item.own_markers if mark.name != "timeout"]
