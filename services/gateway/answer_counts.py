"""How often this gateway gave which answer, per flow: for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from headrace.api.metrics.v1.metrics_pb2 import AnswerCount
from services.gateway.domain.refusals import Refusal

ACCEPTED, REPLIED, REPEATED = "accepted", "replied", "repeated"


class AnswerCounts:
    """Counts since the gateway started. `flow` is empty where there is none of the name that was asked for."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[tuple[str, str]]] = {}

    def answered(self, flow: str, status: int, reason: str) -> None:
        """One answer has been sent, or could not be because the caller had gone."""
        counts = self._counts.get(flow)
        if counts is None:
            counts = self._counts[flow] = Counter()
        counts[f"{status // 100}xx", reason] += 1

    def refused(self, flow: str, refusal: Refusal) -> None:
        self.answered(flow, refusal.status, refusal.code)

    def flows(self) -> Iterator[str]:
        yield from self._counts

    def of(self, flow: str) -> list[AnswerCount]:
        return [
            AnswerCount(status=status, reason=reason, count=count)
            for (status, reason), count in sorted(self._counts.get(flow, Counter()).items())
        ]
