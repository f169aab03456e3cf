"""How often this gateway gave which answer, per flow: for the metrics."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator

from headrace.api.metrics.v1.metrics_pb2 import AnswerCount
from services.gateway.domain.refusals import Refusal

_KINDS = tuple(f"{hundred}xx" for hundred in range(10))

ACCEPTED, REPLIED, REPEATED = "accepted", "replied", "repeated"


class _Minutes:
    """Counts of this minute and of the one before."""

    def __init__(self) -> None:
        self._minute = 0
        self._now: Counter[str] = Counter()
        self._before: Counter[str] = Counter()

    def add(self, code: str, now: float) -> None:
        self._turn(now)
        self._now[code] += 1

    def present(self, now: float) -> Counter[str]:
        self._turn(now)
        return self._now + self._before

    def _turn(self, now: float) -> None:
        minute = int(now // 60)
        if minute != self._minute:
            self._before = self._now if minute == self._minute + 1 else Counter()
            self._now, self._minute = Counter(), minute


class AnswerCounts:
    """Counts since the gateway started. `flow` is empty where there is none of the name that was asked for."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._counts: dict[str, dict[tuple[str, str], int]] = {}
        self._last: dict[str, float] = {}
        self._refused: dict[str, _Minutes] = {}

    def answered(self, flow: str, status: int, reason: str) -> None:
        """One answer has been sent, or could not be because the caller had gone."""
        counts = self._counts.get(flow)
        if counts is None:
            counts = self._counts[flow] = {}
        kind = (_KINDS[status // 100], reason)
        counts[kind] = counts.get(kind, 0) + 1
        self._last[flow] = self._clock()

    def refused(self, flow: str, refusal: Refusal) -> None:
        self.answered(flow, refusal.status, refusal.code)
        self._refused.setdefault(flow, _Minutes()).add(refusal.code, self._clock())

    def lately(self, flow: str) -> tuple[float, dict[str, int]]:
        """When the flow's last request was answered (Unix seconds, 0 for never), and refusals of this minute and the
        one before, by code."""
        refused = self._refused.get(flow)
        return self._last.get(flow, 0.0), dict(refused.present(self._clock())) if refused is not None else {}

    def flows(self) -> Iterator[str]:
        yield from self._counts

    def of(self, flow: str) -> list[AnswerCount]:
        return [
            AnswerCount(status=status, reason=reason, count=count)
            for (status, reason), count in sorted(self._counts.get(flow, {}).items())
        ]
