"""The rate limit of each flow at one place where stimuli come in (a gateway, an orchestrator)."""

from __future__ import annotations

from headrace.model.token_bucket import TokenBucket


class FlowRates:
    """One bucket per flow that has a limit; bursts of up to a second's worth."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}
        self.refused = 0

    def enter(self, flow: str, rate: float, now: float) -> float:
        """One more stimulus: 0 when it may come in, else how many seconds later it is worth trying again.

        `rate` is per second, 0 for no limit; `now` is seconds of a steady clock.
        """
        bucket = self._buckets.get(flow)
        if rate <= 0:
            if bucket is not None:
                del self._buckets[flow]
            return 0.0
        if bucket is None:
            bucket = self._buckets[flow] = TokenBucket(rate, max(1.0, rate), now)
        elif bucket.rate != rate:
            bucket.set_rate(rate, max(1.0, rate), now)
        if bucket.take(now):
            return 0.0
        self.refused += 1
        return bucket.wait_s(now)
