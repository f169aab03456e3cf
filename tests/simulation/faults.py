"""What goes wrong, drawn from the seed: how long a call takes, whether it or its answer is lost, comes late, twice."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

LONGEST_LATE_S = 9.0
STALE = (0.0, 0.0, 0.1)


@dataclass
class Faults:
    """Probabilities per call; all 0 once `heal` was called."""

    lost: float = 0.0
    unanswered: float = 0.0
    late: float = 0.0
    repeated: float = 0.0
    # Of calls that change streams, consumers or instances: they come when something newer was decided already.
    stale: float = 0.0

    @classmethod
    def draw(cls, rng: Random) -> Faults:
        """A third of the runs has no faults of calls, so that the others' faults are seen alone."""
        strength = rng.choice((0.0, 0.005, 0.03, 0.1))
        drawn = [strength * rng.random() for _ in range(4)] if strength else [0.0] * 4
        return cls(*drawn, stale=rng.choice(STALE))

    def heal(self) -> None:
        self.lost = self.unanswered = self.late = self.repeated = self.stale = 0.0


@dataclass
class Network:
    rng: Random
    faults: Faults

    def delay(self) -> float:
        rng = self.rng
        if self.faults.late and rng.random() < self.faults.late:
            return rng.uniform(0.01, LONGEST_LATE_S)
        return 0.0002 + rng.random() * 0.002

    def happens(self, probability: float) -> bool:
        return probability > 0 and self.rng.random() < probability
