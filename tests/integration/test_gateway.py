"""The gateway as a process against a real broker: every answer it can give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from headrace.edge.broker_process import BrokerProcess
from tests.support.gateway_rig import GatewayRig
from tests.support.http_connection import fetch


@pytest.fixture
async def rig(broker: BrokerProcess, tmp_path: Path) -> AsyncIterator[GatewayRig]:
    rig = GatewayRig(broker, tmp_path)
    await rig.open()
    yield rig
    await rig.close()


async def test_a_reply_reaches_its_caller(rig: GatewayRig) -> None:
    await rig.flow("orders")
    await rig.responder("orders")
    gateway = await rig.gateway()
    answer = await fetch(gateway.address, "POST", "/hook/orders/a%20b?x=1", b"hello", {"content-type": "text/plain"})
    assert (answer.status, answer.body, answer.headers["content-type"]) == (200, b"hello", "text/plain")
    assert len(answer.headers["headrace-execution"]) == 32
    assert (answer.headers["headrace-version"], answer.headers["headrace-deployment"]) == ("3", "1")
