"""`pytest tests/simulation -k seed --seed N` runs one seed again and prints what happened in it."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help="one simulated run")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed asked for; 0 when none is. The option is known only where this folder is named on the command line."""
    asked = request.config.getoption("--seed", None)
    return int(os.environ.get("HEADRACE_SEED", "0") if asked is None else asked)
