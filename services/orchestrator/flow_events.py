"""Who waits for news of a flow, and is woken by them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator


class FlowEvents:
    """Nothing is kept of a flow that nobody watches."""

    def __init__(self) -> None:
        self._watchers: dict[str, set[asyncio.Event]] = {}

    @property
    def watched(self) -> list[str]:
        """Flows that somebody watches."""
        return list(self._watchers)

    def announce(self, flow: str) -> None:
        """Sets the events of all who watch it."""
        for event in self._watchers.get(flow, ()):
            event.set()

    @contextlib.contextmanager
    def watching(self, flow: str) -> Iterator[asyncio.Event]:
        """An event that is set by each announcement from now on; whoever waits clears it."""
        event = asyncio.Event()
        self._watchers.setdefault(flow, set()).add(event)
        try:
            yield event
        finally:
            self._watchers[flow].discard(event)
            if not self._watchers[flow]:
                del self._watchers[flow]
