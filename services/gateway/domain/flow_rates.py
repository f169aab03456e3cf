"""The rate limit of each flow, at one gateway."""

from __future__ import annotations

import math

from headrace.model.route import Route
from headrace.model.token_bucket import TokenBucket
from services.gateway.domain import refusals


class FlowRates:
    """One bucket per flow that has a limit; bursts of up to a second's worth."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}
        self.refused = 0

    def enter(self, route: Route, now: float) -> None:
        """One more request; Refusal 429 saying when to come again, where the flow's limit is reached."""
        rate = route.rate_limit
        bucket = self._buckets.get(route.flow)
        if rate <= 0:
            if bucket is not None:
                del self._buckets[route.flow]
            return
        if bucket is None:
            bucket = self._buckets[route.flow] = TokenBucket(rate, max(1.0, rate), now)
        elif bucket.rate != rate:
            bucket.set_rate(rate, max(1.0, rate), now)
        if not bucket.take(now):
            self.refused += 1
            raise refusals.rate_limited(route.flow, rate, max(1, math.ceil(bucket.wait_s(now))))
