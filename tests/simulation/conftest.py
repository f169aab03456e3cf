"""`pytest tests/simulation -k seed --seed N` runs one seed again and prints what happened in it."""

from __future__ import annotations

import os

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=int(os.environ.get("HEADRACE_SEED", "-1")), help="one simulated run")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return int(request.config.getoption("--seed"))
