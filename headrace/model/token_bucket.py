"""How fast something may go: tokens come at a rate, up to a burst; each message takes one."""

from __future__ import annotations


class TokenBucket:
    """`rate` tokens per second, at most `burst` (1 or more) at once, full at first. Times are seconds.

    In any time T at most burst + rate x T are taken. A clock that goes back gives nothing.
    """

    __slots__ = ("_at", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        if not rate > 0 or not burst >= 1:
            raise ValueError(f"rate {rate!r} must be more than 0, burst {burst!r} at least 1")
        self.rate = rate
        self.burst = burst
        self._tokens = float(burst)
        self._at = now

    def take(self, now: float, most: int = 1) -> int:
        """Takes as many whole tokens as there are, at most that many; answers how many."""
        self._refill(now)
        count = min(most, int(self._tokens + 1e-9))
        if count <= 0:
            return 0
        self._tokens -= count
        return count

    def give_back(self, count: int) -> None:
        """Tokens that were taken and not used."""
        self._tokens = min(float(self.burst), self._tokens + count)

    def reserve(self, now: float) -> float:
        """Takes one token now or on credit; answers how many seconds to wait before using it. The caller bounds how
        many wait."""
        self._refill(now)
        self._tokens -= 1.0
        return max(0.0, -self._tokens / self.rate)

    def wait_s(self, now: float) -> float:
        """Seconds until there is a token; 0 when there is one."""
        self._refill(now)
        return max(0.0, (1.0 - self._tokens) / self.rate) if self._tokens < 1.0 - 1e-9 else 0.0

    def set_rate(self, rate: float, burst: float, now: float) -> None:
        """Goes on at another rate; what was saved up stays, within the new burst."""
        self._refill(now)
        self.rate, self.burst = rate, burst
        self._tokens = min(self._tokens, float(burst))

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(float(self.burst), self._tokens + (now - self._at) * self.rate)
            self._at = now
