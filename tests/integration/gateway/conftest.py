"""A rig per test: broker, flows, responders, gateway processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.support.gateway_rig import GatewayRig


@pytest.fixture
async def rig(broker: BrokerProcess, tmp_path: Path) -> AsyncIterator[GatewayRig]:
    rig = GatewayRig(broker, tmp_path)
    await rig.open()
    yield rig
    await rig.close()
