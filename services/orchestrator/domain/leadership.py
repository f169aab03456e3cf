"""Who leads among the orchestrators, and what a change of leader does to generations.

A lease says who leads now; the epoch says how often that has changed. Every leader raises the epoch before it
acts, marks each flow's document with it, and starts the generations of running deployments from it: what an
earlier leader still sends is older everywhere, by compare-and-set or by generation.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

# Generations of one deployment within one epoch.
GENERATIONS_PER_EPOCH = 1_000_000


class LeaseDocument(msgspec.Struct, frozen=True):
    """The lease in KV. `incarnation` is drawn by each process, `name` is kept by its successor on the same place."""

    name: str
    incarnation: str
    address: str
    epoch: int = 0


class EpochDocument(msgspec.Struct, frozen=True):
    """The newest epoch, which outlives the lease and its bucket. `since` is Unix seconds."""

    epoch: int
    name: str = ""
    incarnation: str = ""
    since: float = 0.0


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """Seconds. The broker forgets an unrenewed lease after `ttl`; its holder gives it up `margin` earlier,
    counted from the moment it began to ask for the renewal, on a clock that never stops."""

    ttl: float = 2.5
    renew: float = 0.6
    margin: float = 0.4
    poll: float = 0.3

    def valid_until(self, asked_at: float) -> float:
        return asked_at + self.ttl - self.margin


def generation_of(generation: int, epoch: int) -> int:
    """The generation with which a leader of this epoch goes on: higher than any of an earlier epoch."""
    return max(generation + 1, epoch * GENERATIONS_PER_EPOCH)


def epoch_of(generation: int) -> int:
    """The epoch in which a generation was decided; 0 before the first change of leader."""
    return generation // GENERATIONS_PER_EPOCH
