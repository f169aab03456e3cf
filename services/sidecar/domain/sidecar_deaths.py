"""Which message may be the one that takes its whole sidecar down, found out over several lives of the sidecar.

A crash of the component is counted by the sidecar, in memory. A message that ends the sidecar as well (memory of a
whole container, a component that kills its parent) would be delivered again for ever. So deaths of the sidecar are
counted while no life between them lasts; after the third, what was delivered before runs alone, its id
written down first. One that is found alone in the record of two deaths is given up.
"""

from __future__ import annotations

from dataclasses import dataclass, field

CAREFUL_AFTER = 3
"""Deaths in a row without a life that lasted. What such a life finished does not count: the one that ends them may wait
among many good ones, some of which are always done before."""
LAST_SOLO_DEATH = 2
MOST_KEPT = 100


@dataclass(slots=True)
class SidecarDeaths:
    """What one life leaves for the next: `deaths` in a row, the message that `runs` alone, and how often each was
    running alone at a death."""

    deaths: int = 0
    runs: str = ""
    solo: dict[str, int] = field(default_factory=dict)

    @property
    def careful(self) -> bool:
        return self.deaths >= CAREFUL_AFTER

    def died(self) -> None:
        """The life before came to no orderly end."""
        self.deaths += 1
        if self.runs:
            self.solo[self.runs] = self.solo.pop(self.runs, 0) + 1
            self.runs = ""
        while len(self.solo) > MOST_KEPT:
            del self.solo[next(iter(self.solo))]

    def is_guilty(self, message_id: str) -> bool:
        return self.solo.get(message_id, 0) >= LAST_SOLO_DEATH

    def ended(self, message_id: str) -> bool:
        """A message ran to its end, whatever end: it is none that takes the sidecar down. Whether that is news."""
        news = self.solo.pop(message_id, None) is not None
        if self.runs == message_id:
            self.runs, news = "", True
        return news

    @property
    def empty(self) -> bool:
        """Nothing that the next life would need to know."""
        return not (self.deaths or self.runs or self.solo)
