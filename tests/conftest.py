"""Fixtures every test may use; real parts only."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[BrokerProcess]:
    """A real nats-server of this test's own, `fast` profile, on a free loopback port."""
    process = BrokerProcess(tmp_path / "broker")
    await process.start()
    yield process
    await process.stop()
