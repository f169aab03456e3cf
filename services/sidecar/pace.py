"""How fast a step's calls, or a listener's emits, may begin: its rate limit, divided by its replicas.

Each replica takes its share whether or not the others use theirs: replicas do not talk to each other. Shares follow a
scale within a second or so, when the deployment's state was read again.
"""

from __future__ import annotations

from collections.abc import Callable

from headrace.model.token_bucket import TokenBucket

BURST_S = 0.1
"""A tenth of a second's worth may begin at once: the limit is usually somebody else's, who counts by the second."""
LEAST_WAIT_S = 0.002


class Pace:
    """`rate_limit` is of all replicas together, per second, and more than 0; `replicas` says how many there are now.
    `later` calls back after a delay in seconds."""

    def __init__(
        self,
        rate_limit: float,
        replicas: Callable[[], int],
        later: Callable[[float, Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:
        self._rate_limit = rate_limit
        self._replicas = replicas
        self._later = later
        self._clock = clock
        rate = self._share()
        self._bucket = TokenBucket(rate, _burst(rate), clock())
        self._armed = False

    def take(self, most: int, wake: Callable[[], None]) -> int:
        """How many of that many may begin now; where fewer, `wake` is called once when more may."""
        now = self._now()
        count = self._bucket.take(now, most)
        if count < most and not self._armed:
            self._armed = True
            self._later(max(LEAST_WAIT_S, self._bucket.wait_s(now)), lambda: self._fire(wake))
        return count

    @property
    def slows(self) -> bool:
        """Something waits for its turn."""
        return self._armed

    def give_back(self, count: int) -> None:
        """So many that might begin did not."""
        self._bucket.give_back(count)

    def reserve(self) -> float:
        """Seconds that the next one has to wait; the caller bounds how many wait."""
        return self._bucket.reserve(self._now())

    def _fire(self, wake: Callable[[], None]) -> None:
        self._armed = False
        wake()

    def _now(self) -> float:
        now, rate = self._clock(), self._share()
        if rate != self._bucket.rate:
            self._bucket.set_rate(rate, _burst(rate), now)
        return now

    def _share(self) -> float:
        return self._rate_limit / max(1, self._replicas())


def _burst(rate: float) -> float:
    return max(1.0, rate * BURST_S)
