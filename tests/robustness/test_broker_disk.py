"""The broker's disk: full, slow, and standing still. Nothing is lost or doubled, callers are told in time, and it all
goes on by itself when the disk does."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path

import pytest

from headrace.client import AsyncClient
from headrace.edge.nats_connection import close_nats, connect_nats
from tests.robustness.ledger import Outcome
from tests.robustness.matrix_flow import ANSWER_LIMIT_S, Request, write_flow
from tests.robustness.matrix_rig import ACK_WAIT_S, FLOW, MatrixRig, effects_file
from tests.support import small_disk, soak
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh, start_mesh
from tests.support.slow_disk import slow_disk

# Streams of logs and dead letters reserve some of it.
DISK_BYTES = 1 << 30
REPLY_TIMEOUT_S = 3.0
# The gateway's own limit comes after the flow's.
TOLD_WITHIN_S = REPLY_TIMEOUT_S + 2.0
PROFILES = ("durable", "fast") if soak.ASKED else ("durable",)


async def begin(mesh: RunningMesh, folder: Path) -> MatrixRig:
    """The flow of the fault matrix with its callers; some of them take what answer they get."""
    async with AsyncClient(mesh.api) as client:
        file = write_flow(FLOW, folder, effects_file(folder, FLOW), reply_timeout=f"{REPLY_TIMEOUT_S:g}s")
        await client.apply(file)
        await client.publish(FLOW)
        await client.start(FLOW)
    rig = MatrixRig(folder, mesh, await connect_nats(mesh.endpoints.nats, "ledger"))
    rig.begin(careful=4, careless=4)
    await rig.recovered()
    return rig


def told(rig: MatrixRig, since: float) -> list[Request]:
    """Those that were sent since then and got an answer that was not theirs."""
    return [each for each in rig.lanes.requests.values() if each.sent_at > since and each.outcome is Outcome.UNKNOWN]


def longest_wait(requests: list[Request]) -> float:
    return max((each.answered_at - each.sent_at for each in requests), default=0.0)


@pytest.mark.needs(small_disk.NEED)
@pytest.mark.timeout(120)
@pytest.mark.parametrize("profile", PROFILES)
async def test_a_full_disk_costs_no_message_and_no_hand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], profile: str
) -> None:
    store = tmp_path / "data" / "broker"
    store.mkdir(parents=True)
    within = partial(small_disk.wrapped, store, DISK_BYTES)
    with start_mesh(tmp_path, profile, ack_wait_s=ACK_WAIT_S, within=within) as mesh:
        rig = await begin(mesh, tmp_path)
        try:
            full_at = time.time()
            filler = small_disk.fill(small_disk.place(mesh.process.pid, store))
            await eventually(lambda: len(told(rig, full_at)) >= 4, within_s=ANSWER_LIMIT_S)
            failed = longest_wait(told(rig, full_at))
            freed_at = time.monotonic()
            filler.unlink()
            await rig.recovered()
            again_s = time.monotonic() - freed_at
            ledger = await rig.settle()
        finally:
            await rig.end()
            await close_nats(rig.connection)
        said = (tmp_path / "up.out").read_text()
    with capsys.disabled():
        print(f"\nfull disk, {profile}: callers were told within {failed:.1f} s, works {again_s:.1f} s after there was "
              f"room; {ledger.line()}")  # fmt: skip
    assert ledger.ok, "\n".join(f"{rig.history(id)}\n  {ledger.why(id)}" for id in ledger.offenders[:3])
    assert failed < TOLD_WITHIN_S
    assert "is full: free some space" in said


@pytest.mark.needs("strace")
@pytest.mark.timeout(120)
async def test_a_disk_that_is_slow_and_then_stands_still(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with start_mesh(tmp_path, "durable", ack_wait_s=ACK_WAIT_S) as mesh:
        rig = await begin(mesh, tmp_path)
        try:
            lines = []
            for delay_s, for_s in ((0.02, 4.0), (3.0, 5.0)):
                since = time.time()
                async with slow_disk(mesh.pid_of("broker"), delay_s=delay_s):
                    await asyncio.sleep(for_s)  # tidy: pace
                    answered = [each for each in rig.lanes.requests.values() if each.answered_at > since]
                went_at = time.monotonic()
                await rig.recovered()
                again_s = time.monotonic() - went_at
                waited = longest_wait(told(rig, since))
                lines.append(
                    f"{delay_s:g} s more for each write and sync: {len(answered)} answers in {for_s:g} s, "
                    f"{len(told(rig, since))} told otherwise within {waited:.1f} s, works {again_s:.1f} s after"
                )
                assert waited < TOLD_WITHIN_S
            ledger = await rig.settle()
        finally:
            await rig.end()
            await close_nats(rig.connection)
    with capsys.disabled():
        print("\nslow disk, durable: " + "; ".join(lines) + f"; {ledger.line()}")
    assert ledger.ok, "\n".join(f"{rig.history(id)}\n  {ledger.why(id)}" for id in ledger.offenders[:3])
