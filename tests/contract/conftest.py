"""Fixtures of the contract suites."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.contract.broker_sides import side  # noqa: F401  fixture
from tests.contract.lane_world import IMPLEMENTATIONS, World, make_world


@pytest.fixture(params=IMPLEMENTATIONS, ids=[made.__name__ for made in IMPLEMENTATIONS])
async def world(request: pytest.FixtureRequest, broker: BrokerProcess) -> AsyncIterator[World]:
    async with make_world(broker, request.param) as made:
        yield made
