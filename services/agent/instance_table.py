"""All instances of this agent: starts and stops them through the driver, fenced, and tells watchers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

from headrace.edge.structured_log import get_logger
from headrace.model.errors import Exhausted, Unavailable
from services.agent.domain.instances import (
    DEFAULT_INSTANCE_LIMIT,
    GenerationFence,
    InstanceSpec,
    InstanceState,
    InstanceView,
    check_room,
    check_same_spec,
    check_spec,
)
from services.agent.driver import InstanceDriver, RunningInstance

log = get_logger(__name__)

WATCHER_LIMIT = 64
WATCH_SILENCE_S = 5.0


@dataclass
class _Entry:
    spec: InstanceSpec
    generation: int
    running: RunningInstance | None = None
    ending: asyncio.Task[None] | None = None

    def view(self) -> InstanceView:
        assert self.running is not None
        return self.running.view(self.generation)


class _Watcher:
    """What one watcher has not been told yet: at most one view per instance."""

    def __init__(self) -> None:
        self.pending: dict[str, InstanceView] = {}
        self.wake = asyncio.Event()

    def tell(self, view: InstanceView) -> None:
        self.pending[view.spec.name] = view
        self.wake.set()


class InstanceTable:
    """Owns the instances; `close` ends them all."""

    def __init__(self, driver: InstanceDriver, *, limit: int = DEFAULT_INSTANCE_LIMIT) -> None:
        self._driver = driver
        self._limit = limit
        self._fence = GenerationFence()
        self._entries: dict[str, _Entry] = {}
        self._watchers: dict[_Watcher, None] = {}  # told in the order in which they came
        self._closing = False

    async def start(self, spec: InstanceSpec, generation: int) -> InstanceView:
        """Starts it, or raises the generation of the one that runs with the same spec.

        While one of that name is being stopped, waits for that; the caller's deadline is the limit.
        """
        check_spec(spec)
        while True:
            if self._closing:
                raise Unavailable("the agent is stopping", reason="AGENT_STOPPING", next_step="Try again")
            self._fence.pass_through(spec.name, generation)
            entry = self._entries.get(spec.name)
            if entry is None:
                return self._begin(spec, generation)
            if entry.ending is None:
                check_same_spec(entry.spec, spec)
                if entry.generation != generation:
                    entry.generation = generation
                    self._tell(entry.view())
                return entry.view()
            await asyncio.wait([entry.ending])

    def _begin(self, spec: InstanceSpec, generation: int) -> InstanceView:
        check_room(len(self._entries), self._limit)
        entry = _Entry(spec, generation)

        def changed() -> None:
            if entry.running is not None:
                self._tell(entry.view())

        entry.running = self._driver.start(spec, changed)
        self._entries[spec.name] = entry
        log.info("instance started", instance=spec.name, generation=generation)
        view = entry.view()
        self._tell(view)
        return view

    async def stop(self, name: str, generation: int, grace_s: float) -> None:
        """Returns when nothing of the instance is left; also when there is none. Goes on if the caller goes away."""
        self._fence.pass_through(name, generation)
        entry = self._entries.get(name)
        if entry is None:
            return
        entry.generation = generation
        await self._end(entry, grace_s)

    async def _end(self, entry: _Entry, grace_s: float) -> None:
        if entry.ending is None:
            entry.ending = asyncio.get_running_loop().create_task(self._end_now(entry, grace_s))
        await asyncio.shield(entry.ending)

    async def _end_now(self, entry: _Entry, grace_s: float) -> None:
        assert entry.running is not None
        name = entry.spec.name
        try:
            await entry.running.stop(grace_s)
        except TimeoutError as error:
            entry.ending = None
            log.error("instance cannot be ended", instance=name, error=str(error))
            raise Unavailable(
                f"instance {name} cannot be ended: {error}", reason="INSTANCE_STUCK", next_step="Try again"
            ) from error
        view = replace(entry.view(), state=InstanceState.GONE, address="", pid=0)
        del self._entries[name]
        log.info("instance stopped", instance=name, last_exit=view.last_exit)
        self._tell(view)

    def all(self) -> list[InstanceView]:
        """All instances, by name."""
        return [self._entries[name].view() for name in sorted(self._entries)]

    async def watch(self) -> AsyncIterator[list[InstanceView]]:
        """First all, then those that changed since the last time, at least every 5 s an empty list; ends when
        the table closes."""
        if len(self._watchers) >= WATCHER_LIMIT:
            raise Exhausted(f"{WATCHER_LIMIT} watchers already", reason="WATCHER_LIMIT", next_step="End one of them")
        watcher = _Watcher()
        self._watchers[watcher] = None
        try:
            yield self.all()
            while not self._closing:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(WATCH_SILENCE_S):
                        await watcher.wake.wait()
                watcher.wake.clear()
                changed, watcher.pending = watcher.pending, {}
                if not self._closing or changed:
                    yield list(changed.values())
        finally:
            self._watchers.pop(watcher, None)

    def _tell(self, view: InstanceView) -> None:
        for watcher in self._watchers:
            watcher.tell(view)

    def refuse_new(self) -> None:
        """From now on nothing is started, and watches end."""
        self._closing = True
        for watcher in self._watchers:
            watcher.wake.set()

    async def close(self, grace_s: float) -> None:
        """Ends all instances in parallel."""
        self.refuse_new()
        ends = [self._end(entry, grace_s) for entry in list(self._entries.values())]
        for outcome in await asyncio.gather(*ends, return_exceptions=True):
            if isinstance(outcome, BaseException):
                log.error("an instance did not end", error=repr(outcome))
        await self._driver.close()
