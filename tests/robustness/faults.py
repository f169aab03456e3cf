"""Fault rounds: traffic, one kill -9 while the victim holds something, recovery, and the ledger's verdict."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nats.aio.client import Client as Nats

from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
from headrace.edge.nats_connection import close_nats, connect_nats
from headrace.model import subjects
from headrace.model.errors import Unavailable
from tests.robustness.ledger import Effect, Outcome, Verdict, check, counted, read_effects
from tests.robustness.traffic import Traffic
from tests.support.eventually import eventually
from tests.support.soak import TOTALS

WORKSPACE = "default"
HOLD_LIMIT_S = 10.0
RECOVERY_LIMIT_S = 40.0


class InFlight:
    """Reads what is delivered and not acknowledged, straight from the broker (CONSUMER.INFO)."""

    def __init__(self, connection: Nats, flow: str, deployment: int) -> None:
        self._connection = connection
        self._assets = JetStreamAssets(connection, timeout_s=2.0)
        self._flow = flow
        self._deployment = deployment

    @classmethod
    async def open(cls, url: str, flow: str, deployment: int) -> InFlight:
        return cls(await connect_nats(url, "ledger"), flow, deployment)

    async def unacknowledged(self, step: str) -> int:
        """`num_ack_pending` of a step's consumer: what its instances hold at this moment."""
        stream = subjects.flow_stream(WORKSPACE, self._flow)
        info = await self._assets.request(f"CONSUMER.INFO.{stream}.{subjects.step_consumer(self._deployment, step)}")
        return int(info["num_ack_pending"])

    async def waiting(self) -> int:
        """Messages in the flow's stream; the cursors of slots, and who owns the ingress, wait for nobody."""
        stream = subjects.flow_stream(WORKSPACE, self._flow)
        info = await self._assets.stream_info(stream, f"{subjects.ROOT}.{WORKSPACE}.{self._flow}.>")
        counts = (info["state"].get("subjects") or {}) if info else {}
        return sum(
            count
            for subject, count in counts.items()
            if not subject.split(".")[3].startswith("c") and subject.split(".")[4] != subjects.OWNER_STEP
        )

    async def is_empty(self) -> bool:
        """False also while the broker does not answer."""
        try:
            return await self.waiting() == 0
        except (Unavailable, JetStreamApiError):
            return False

    async def close(self) -> None:
        await close_nats(self._connection)


@dataclass(frozen=True)
class Round:
    """One fault round. It counts only if `held` is not zero."""

    victim: str
    held: int
    recovered_s: float
    verdict: Verdict

    def line(self) -> str:
        again = f"answers again after {self.recovered_s:.2f} s"
        return f"kill {self.victim} holding {self.held}, {again}: {self.verdict.line()}"


async def fault_round(
    *,
    victim: str,
    kill: Callable[[], object],
    held_by: Callable[[Traffic], object],
    in_flight: InFlight,
    addresses: list[str],
    path: str,
    effects_file: Path,
    rate: float = 80.0,
    after_s: float = 1.5,
    repeat_s: float = 0.0,
) -> Round:
    """Runs traffic, kills while `held_by` (a step's name, or a number) is not zero, waits until answers come
    again and everything stored is worked off, and checks the ledger of this round's ids."""
    async with Traffic(addresses, path, rate=rate, repeat_s=repeat_s) as traffic:
        await eventually(lambda: traffic.counted(Outcome.OK) >= 30, within_s=20)
        held = await _wait_until_held(held_by, traffic, in_flight)
        kill()
        killed_at = time.monotonic()
        recovered_s = await _recovery(traffic, killed_at)
        enough = traffic.sent + int(after_s * rate)
        await eventually(lambda: traffic.sent >= enough, within_s=after_s + 10.0)
        attempts = await traffic.finish()
    await eventually(in_flight.is_empty, within_s=RECOVERY_LIMIT_S, every_s=0.1)
    acknowledged = {attempt.id for attempt in attempts if attempt.outcome is Outcome.OK}
    mine: list[Effect] = []

    def all_effected() -> bool:
        mine[:] = [effect for effect in read_effects(effects_file) if effect.id.startswith(f"{traffic.run}-")]
        return acknowledged <= {effect.id for effect in mine}

    with contextlib.suppress(AssertionError):  # the verdict names what is lost
        await eventually(all_effected, within_s=5.0)
    TOTALS.round()
    return Round(victim, held, recovered_s, counted(check(attempts, mine)))


async def _wait_until_held(held_by: Callable[[Traffic], object], traffic: Traffic, in_flight: InFlight) -> int:
    deadline = time.monotonic() + HOLD_LIMIT_S
    while time.monotonic() < deadline:
        holder = held_by(traffic)
        held = await in_flight.unacknowledged(holder) if isinstance(holder, str) else int(str(holder))
        if held > 0:
            return held
    return 0


async def _recovery(traffic: Traffic, killed_at: float) -> float:
    """Seconds until a request that was sent after the kill was answered OK."""
    sent_before = traffic.sent

    def answered() -> bool:
        return any(
            attempt.outcome is Outcome.OK and int(attempt.id.rpartition("-")[2]) > sent_before
            for attempt in reversed(traffic.attempts[-400:])
        )

    await eventually(answered, within_s=RECOVERY_LIMIT_S)
    return time.monotonic() - killed_at
