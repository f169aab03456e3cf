"""What an orchestrator hears of messages for sleeping steps: the broker's copies, some of which are lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.simulation.links import Link

if TYPE_CHECKING:
    from tests.simulation.world import World

# Of each two copies that were due one is lost.
HEARD = 0.5


@dataclass(eq=False)
class Ear:
    """A subscription that ends with its first message."""

    world: World
    link: Link
    subject: str
    tell: Callable[[Any], Awaitable[None]]

    async def unsubscribe(self, limit: int = 0) -> None:
        if not limit and self in self.world.ears:
            self.world.ears.remove(self)

    async def hear(self, late_s: float) -> None:
        await asyncio.sleep(late_s)  # tidy: pace
        if not self.link.dead:
            await self.tell(None)


@dataclass
class Ears:
    """The connection of one orchestrator, and the broker's word on its streams."""

    world: World
    link: Link

    async def subscribe(self, subject: str, cb: Callable[[Any], Awaitable[None]]) -> Ear:
        ear = Ear(self.world, self.link, subject, cb)
        self.world.ears.append(ear)
        return ear

    async def stream_states(self, subject: str) -> dict[str, dict[str, Any]]:
        return {name: {"last_seq": stream.last} for name, stream in self.world.broker.streams.items()}
