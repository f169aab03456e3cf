"""One loop per flow: read, plan, apply, until there is nothing to do; then wait for a report or the resync.

Reports only wake a loop; what to do follows from the snapshot alone, so a lost report costs latency only.
Slow actions (calls to agent, sidecars, registry) run beside the loop, one per thing they touch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import grpc

from headrace.edge.structured_log import get_logger
from headrace.edge.task_ending import end_tasks
from headrace.model import subjects
from headrace.model.errors import Conflict, HeadraceError
from services.orchestrator.applier import Applier, touches
from services.orchestrator.domain import actions as do
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.planner import make_plan
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.flow_events import FlowEvents
from services.orchestrator.snapshot_reader import SnapshotReader

log = get_logger(__name__)

RESYNC_S = 5.0
# A loop that found nothing to do doubles its rest up to this, and begins anew with whatever wakes it.
LONGEST_REST_S = 300.0
FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 2.0
# Rounds without a pause that a start or a stop never needs; more means that two parts disagree.
MAX_BUSY_ROUNDS = 200
SLOW_ACTIONS = (do.Resolve, do.StartInstance, do.StopInstance, do.CallInstance, do.SettleMessages, do.FinishLetters)


@dataclass
class FlowLoop:
    """Reconciles one flow. Owns its task and those of its slow actions; `stop` ends and awaits them."""

    flow: str
    reader: SnapshotReader
    applier: Applier
    on_round: Callable[[str], None]
    observe: Callable[[Snapshot], None]
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _slow: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _resting: dict[str, float] = field(default_factory=dict)
    _pause_s: float = FIRST_PAUSE_S
    _rest_s: float = RESYNC_S
    _task: asyncio.Task[None] | None = None
    gone: bool = False
    _strays: int = 0

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name=f"reconcile {self.flow}")

    def wake(self) -> None:
        """Something happened: looks at once, and soon again."""
        self._rest_s = RESYNC_S
        self._wake.set()

    def glance(self) -> None:
        """Looks at once; when it looks again stays as it is."""
        self._wake.set()

    async def stop(self) -> None:
        await end_tasks([*self._slow.values(), *([self._task] if self._task else [])])

    async def _run(self) -> None:
        busy_rounds = 0
        while True:
            self._wake.clear()
            wait_s = await self._round()
            busy_rounds = busy_rounds + 1 if wait_s == 0 else 0
            if busy_rounds > MAX_BUSY_ROUNDS:
                log.error("flow does not settle, it is slowed down", flow=self.flow)
                wait_s = LONGEST_PAUSE_S
            if self.gone and not self._slow:
                return
            if wait_s == 0:
                continue
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)

    async def _round(self) -> float:
        """One look and what it asked for; answers how long to wait for a report (0: look again at once)."""
        try:
            snapshot = await self.reader.read(self.flow)
            if snapshot is None:
                self.gone = True
                return RESYNC_S
            self.gone = False
            self.observe(snapshot)
            self._watch_for_strays(snapshot)
            plan = make_plan(snapshot)
            changed = await self._apply(snapshot, plan.actions)
        except Conflict:
            return 0
        except Exception as error:
            return self._failed(error)
        self._pause_s = FIRST_PAUSE_S
        if changed:
            self.on_round(self.flow)
            return 0
        if snapshot.flow.state == FlowState.SLEEPING:
            self._rest_s = LONGEST_REST_S  # what comes wakes it, and who missed that is found by one look for all flows
        return min(self._rest_s, plan.recheck_s if plan.recheck_s is not None else self._rest_s)

    def _watch_for_strays(self, snapshot: Snapshot) -> None:
        """Anything stored under the ingress itself is an alarm: no step reads there."""
        strays = snapshot.waiting(subjects.INGRESS)
        if strays and strays != self._strays:
            log.error("messages are stored under the ingress, the stream was changed", flow=self.flow, count=strays)
        self._strays = strays

    def _failed(self, error: Exception) -> float:
        expected = isinstance(error, HeadraceError | grpc.aio.AioRpcError | TimeoutError)
        if expected:
            log.warning("round failed, it is repeated", flow=self.flow, error=str(error)[:500])
        else:
            log.exception("round failed, it is repeated", flow=self.flow, error=repr(error)[:500])
        self._pause_s, pause = min(self._pause_s * 2, LONGEST_PAUSE_S), self._pause_s
        return pause

    async def _apply(self, snapshot: Snapshot, actions: tuple[do.Action, ...]) -> bool:
        """Begins slow actions, does the others at once; True when anything was done here."""
        now = asyncio.get_running_loop().time()
        quick: list[do.Action] = []
        for action in actions:
            key = touches(action)
            if key in self._slow or self._resting.get(key, 0.0) > now:
                continue
            if isinstance(action, SLOW_ACTIONS):
                task = asyncio.create_task(self._do_slowly(snapshot, key, action), name=f"{self.flow}: {key}")
                self._slow[key] = task
            else:
                quick.append(action)
        results = await asyncio.gather(
            *(self.applier.apply(snapshot, action) for action in quick), return_exceptions=True
        )
        problems = [result for result in results if isinstance(result, BaseException)]
        for problem in problems:
            if not isinstance(problem, Conflict):
                raise problem
        if problems:
            raise problems[0]
        return bool(quick)

    async def _do_slowly(self, snapshot: Snapshot, key: str, action: do.Action) -> None:
        try:
            await self.applier.apply(snapshot, action)
            self._resting.pop(key, None)
        except Conflict:
            pass
        except Exception as error:
            now = asyncio.get_running_loop().time()
            self._resting[key] = now + FIRST_PAUSE_S
            asyncio.get_running_loop().call_later(FIRST_PAUSE_S, self.wake)
            log.warning("action failed", flow=self.flow, action=type(action).__name__, key=key, error=str(error)[:500])
        finally:
            self._slow.pop(key, None)
            self.wake()


class FlowLoops:
    """The loops of all flows; one is begun when a flow is first heard of."""

    def __init__(
        self, reader: SnapshotReader, applier: Applier, observe: Callable[[Snapshot], None] = lambda snapshot: None
    ) -> None:
        self._reader = reader
        self._observe = observe
        self._applier = applier
        self._loops: dict[str, FlowLoop] = {}
        self._events = FlowEvents()
        self.announce = self._events.announce
        self.watching = self._events.watching
        """An event that is set whenever something of a flow may have changed."""
        self.stopped = False

    def wake(self, flow: str) -> None:
        """Wakes a flow's loop, and whoever watches that flow. Empty: all loops."""
        if self.stopped:
            for name in [flow] if flow else self._events.watched:
                self.announce(name)
            return
        for name in [flow] if flow else list(self._loops):
            loop = self._loops.get(name)
            if loop is None or loop.gone:
                loop = FlowLoop(name, self._reader, self._applier, self.announce, self._observe)
                self._loops[name] = loop
                loop.start()
            loop.wake()
            self.announce(name)

    def glance(self, flow: str) -> None:
        """It works, and nothing else is to be told of it."""
        loop = self._loops.get(flow)
        if loop is not None:
            loop.glance()
        self.announce(flow)

    def knows(self, flow: str) -> bool:
        loop = self._loops.get(flow)
        return loop is not None and not loop.gone

    def start(self) -> None:
        """Loops may be begun (again)."""
        self.stopped = False

    async def stop(self) -> None:
        """Ends all loops; `wake` only tells watchers from now on."""
        self.stopped = True
        loops, self._loops = list(self._loops.values()), {}
        await asyncio.gather(*(loop.stop() for loop in loops))
