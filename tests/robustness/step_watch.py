"""What a step has been given and has not acknowledged, read from the broker."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

from nats.aio.client import Client as Nats

from headrace.edge.jetstream_assets import JetStreamApiError, JetStreamAssets
from headrace.model import subjects
from headrace.model.errors import Unavailable
from tests.support.eventually import eventually

WORKSPACE = "default"
# How old the broker's answer may be for those who wait; one answer serves all steps of a flow.
LOOK_EVERY_S = 0.05


class StepWatch:
    """`held`, then the fault, then `worked_off`; for many steps of one flow at once."""

    def __init__(self, connection: Nats, flow: str) -> None:
        self._assets = JetStreamAssets(connection)
        self._stream = subjects.flow_stream(WORKSPACE, flow)
        self._looking = asyncio.Lock()
        self._looked_at = -math.inf
        self._infos: list[dict[str, Any]] = []
        self._given: dict[str, int] = {}

    async def held(self, deployment: int, step: str) -> int:
        """How many messages the step holds now; up to where it was given messages is remembered."""
        infos = await self._consumers(deployment, step, max_age_s=0.0)
        self._given |= {info["name"]: int(info["delivered"]["stream_seq"]) for info in infos}
        return sum(int(info["num_ack_pending"]) for info in infos)

    async def worked_off(self, deployment: int, step: str, *, within_s: float) -> None:
        """Until all that it had been given when `held` was asked is acknowledged."""

        async def done() -> bool:
            try:
                infos = await self._consumers(deployment, step, max_age_s=LOOK_EVERY_S)
            except (Unavailable, JetStreamApiError):
                return False
            return all(self._is_worked_off(info) for info in infos)

        await eventually(done, within_s=within_s, every_s=LOOK_EVERY_S)

    def _is_worked_off(self, info: dict[str, Any]) -> bool:
        """A restarted sidecar resets the consumer: what is given out no more is not yet done."""
        done = info["ack_floor"]["stream_seq"] >= self._given.get(info["name"], 0)
        return done or not (info["num_ack_pending"] or info["num_pending"])

    async def _consumers(self, deployment: int, step: str, *, max_age_s: float) -> list[dict[str, Any]]:
        """The step's durable, or those of its slots."""
        asked_at = time.monotonic()
        async with self._looking:
            if self._looked_at < asked_at - max_age_s:
                began = time.monotonic()
                self._infos = await self._assets.consumers(self._stream)
                self._looked_at = began
        name = subjects.step_consumer(deployment, step)
        return [info for info in self._infos if info["name"] == name or info["name"].startswith(f"{name}_s")]
