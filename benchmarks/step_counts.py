"""How many calls each step of a flow has ended, from its instances themselves, in the time that they take to answer.

The API waits a tenth of a second for whoever else may answer; where the end of a stretch is looked for, that is part of
what is measured.
"""

from __future__ import annotations

import asyncio
import uuid

from benchmarks.raw_nats import RawNats
from headrace.api.hop.v1.hop_pb2 import HopSnapshot
from headrace.model import subjects

ANSWER_LIMIT_S = 0.5


class StepCounts:
    """One connection to the broker. `expect` first: who has to answer."""

    def __init__(self) -> None:
        self._client: RawNats
        self._inbox = f"bench.counts.{uuid.uuid4().hex}"
        self._answers: dict[str, HopSnapshot] = {}
        self._expected: dict[str, set[str]] = {}
        self._asked: set[str] = set()
        self._complete = asyncio.Event()

    @classmethod
    async def connect(cls, host: str, port: int) -> StepCounts:
        counts = cls()
        counts._client = await RawNats.connect(host, port, counts._on_answer)
        counts._client.subscribe(counts._inbox, 1)
        return counts

    def expect(self, flow: str, instances: set[str]) -> None:
        """These are the instances of a flow."""
        self._expected[flow] = instances

    def expects(self, flow: str) -> bool:
        """Whether it was told."""
        return bool(self._expected.get(flow))

    def forget(self, flow: str) -> None:
        """Its instances may have changed."""
        self._expected.pop(flow, None)

    def _on_answer(self, subject: str, reply: str, payload: bytes) -> None:
        if payload:
            snapshot = HopSnapshot.FromString(payload)
            self._answers[snapshot.instance] = snapshot
        if self._asked <= self._answers.keys():
            self._complete.set()

    async def finished(self, flow: str) -> dict[str, int]:
        """Calls ended by step, since its instances started; TimeoutError where one does not answer."""
        self._asked, self._answers = self._expected[flow], {}
        self._complete.clear()
        self._client.publish(subjects.hop_request_subject("default", flow), b"", self._inbox)
        async with asyncio.timeout(ANSWER_LIMIT_S):
            await self._complete.wait()
        found = dict.fromkeys((self._answers[name].step for name in self._asked), 0)
        for name in self._asked:
            for row in self._answers[name].histograms:
                if row.phase == "component":
                    found[row.step] = found.get(row.step, 0) + row.count
        return found

    def close(self) -> None:
        self._client.close()
