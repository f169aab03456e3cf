"""Wall clocks of all our processes set forward and back by an hour, while messages flow and code is switched.

libfaketime changes what our processes are told while they run; the broker (a static binary) and CLOCK_MONOTONIC keep
the true time, as on a machine whose clock somebody sets.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.nats_connection import close_nats, connect_nats
from tests.robustness.matrix_mesh import matrix_mesh
from tests.robustness.matrix_rig import FLOW, MatrixRig

LIBRARIES = ("/usr/lib/{}/faketime/libfaketime.so.1", "/usr/lib/faketime/libfaketime.so.1")


def library() -> str:
    """Where Debian's package faketime puts it."""
    machine = f"{os.uname().machine}-linux-gnu"
    found = [path for path in (pattern.format(machine) for pattern in LIBRARIES) if Path(path).exists()]
    assert found, "faketime is installed, its library is not where Debian puts it"
    return found[0]


# libfaketime reads its file again when over a second has passed, counted in whole seconds. A clock that jumped while
# an operation runs would end that operation's time.
SEEN_AFTER_S = 3.2


class Clock:
    """The wall clock that a mesh sees."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0h")

    def set(self, offset: str) -> None:
        """For example `+1h`; seen within three seconds."""
        new = self._file.with_suffix(".new")
        new.write_text(offset + "\n")
        new.rename(self._file)

    def environment(self) -> dict[str, str]:
        return {
            "LD_PRELOAD": library(),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


@pytest.mark.needs("faketime")
@pytest.mark.timeout(240)
async def test_clocks_that_jump_lose_double_and_delay_nothing(
    broker: BrokerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(tmp_path / "clock")
    async with matrix_mesh(tmp_path, broker.url, **clock.environment()) as mesh:
        connection = await connect_nats(broker.url, "ledger")
        rig = MatrixRig(tmp_path, mesh, connection)
        try:
            rig.begin()
            for hours in (1, -1):
                clock.set(f"{hours:+}h")
                await asyncio.sleep(SEEN_AFTER_S)  # tidy: pace
                await rig.recovered()
                async with AsyncClient(mesh.api) as client:
                    result = await client.restart(FLOW, timeout_s=30)
                    made = {each.number: each for each in await client.list_deployments(FLOW)}[result.deployment]
                assert round((made.create_time.ToSeconds() - time.time()) / 3600) == hours
                rig.now_on(result.deployment)
                await rig.recovered()
            ledger = await rig.settle()
        finally:
            await rig.end()
            await close_nats(connection)
    with capsys.disabled():
        print(f"\nclocks an hour ahead, then an hour behind, each with a switch: {ledger.line()}")
    assert ledger.ok, "\n".join(f"{rig.history(id)}\n  {ledger.why(id)}" for id in ledger.offenders[:3])
