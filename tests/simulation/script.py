"""What people do and what breaks in one run, all drawn from the seed; `run` is one whole run."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from headrace.model.errors import HeadraceError, Unavailable
from services.orchestrator.domain.documents import Rollout, Strategy
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.verb_call import VerbCall
from tests.simulation.faults import LONGEST_LATE_S, Faults
from tests.simulation.flow_drafts import FLOW, Trigger
from tests.simulation.links import MISTAKES
from tests.simulation.orchestrators import Orchestrator
from tests.simulation.rest import Rest
from tests.simulation.world import World
from tests.support.virtual_time import run_in_virtual_time

CLIENT_TRIES = 8
VERBS = ("publish", "start", "stop", "drop", "restart", "rollback", "scale", "suspend", "resume")
# What a person mostly does in a state; now and then anything.
FITTING = {
    FlowState.STOPPED: ("start", "start", "publish", "rollback"),
    FlowState.RUNNING: ("publish", "restart", "restart", "rollback", "scale", "suspend", "stop", "drop"),
    FlowState.SLEEPING: ("publish", "restart", "rollback", "scale", "suspend", "stop"),
    FlowState.SUSPENDED: ("resume", "resume", "stop", "drop"),
}


class Person:
    """Uses the verbs through either orchestrator; repeats a call that got no answer, with its request id."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._calls = 0

    async def does(self, verb: str) -> bool:
        """Whether it was begun; a refusal (wrong state, busy) is an answer."""
        world, self._calls = self._world, self._calls + 1
        request = f"call {self._calls}"
        for _ in range(CLIENT_TRIES):
            up = [item for item in world.orchestrators if item.up and item.lease.leading]
            if not up:
                await world.pause(0.5)
                continue
            try:
                await self._through(world.rng.choice(up), verb, request)
            except Unavailable:
                await world.pause(0.2)
                continue
            except HeadraceError as error:
                world.say(f"{verb}: refused, {error.reason}")
                return False
            except TimeoutError:
                continue
            world.say(f"{verb}: begun")
            return True
        return False

    async def _through(self, orchestrator: Orchestrator, verb: str, request: str) -> None:
        """The client's deadline also ends a wait for an orchestrator that was killed."""
        service, rollouts, others = orchestrator.service, orchestrator.rollouts, orchestrator.interventions
        rng, call = self._world.rng, VerbCall(request)
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "create": lambda: service.create(
                FLOW, self._world.draw_spec(self._world.rng.choice((1, 2))), validate_only=False
            ),
            "draft": lambda: service.update_draft(FLOW, self._world.draw_spec(1), "", validate_only=False),
            "publish": lambda: rollouts.publish(FLOW, self._rollout(), call),
            "restart": lambda: rollouts.restart(FLOW, self._rollout(), call),
            "rollback": lambda: rollouts.rollback(FLOW, self._world.rng.randint(1, 2), self._rollout(), call),
            "start": lambda: service.start(FLOW, 0, 60.0, call),
            "stop": lambda: service.stop(FLOW, "DRAIN", 60.0, call),
            "drop": lambda: service.stop(FLOW, "DROP", 60.0, call),
            "suspend": lambda: others.suspend(FLOW, 60.0, 0.0, 0, call),
            "resume": lambda: others.resume(FLOW, 60.0, call),
            "scale": lambda: others.scale(FLOW, rng.choice(("price", "check")), rng.randint(1, 3), 60.0, call),
        }
        async with asyncio.timeout(20.0):
            await calls[verb]()

    def _rollout(self) -> Rollout:
        rng, changing = self._world.rng, self._world.triggers == Trigger.CHANGING
        strategies = [Strategy.RESTART] * 3 if changing else []  # another trigger needs it
        return Rollout(rng.choice([*Strategy, *strategies]), rng.random() < 0.3, rng.choice((20.0, 60.0)))


class Breaker:
    """Stops, kills and cuts off processes now and then."""

    def __init__(self, world: World, rate_per_s: float) -> None:
        self._world = world
        self._rate = rate_per_s

    async def run(self) -> None:
        rng = self._world.rng
        actions = (
            self._crash_orchestrator,
            self._crash_at_a_call,
            self._hold_orchestrator,
            self._hold_at_a_call,
            self._hold_at_a_call,
            self._kill_agent,
            self._kill_sidecar,
            self._kill_component,
            self._cut_streams,
            self._registry_away,
            self._push,
        )
        while self._rate:
            await asyncio.sleep(rng.expovariate(self._rate))  # tidy: pace
            await rng.choice(actions)()

    def _orchestrator(self) -> Orchestrator:
        return self._world.rng.choice(self._world.orchestrators)

    async def _crash_orchestrator(self) -> None:
        orchestrator = self._orchestrator()
        self._world.say(f"{orchestrator.name} is killed")
        orchestrator.crash()
        await self._boot_later(orchestrator)

    async def _boot_later(self, orchestrator: Orchestrator) -> None:
        await self._world.pause(self._world.rng.choice((0.05, 1.0)))
        if not orchestrator.up:
            orchestrator.boot()

    async def _crash_at_a_call(self) -> None:
        """Just before or just after one of its next calls takes effect."""
        orchestrator = self._orchestrator()
        if orchestrator.up:
            orchestrator.link.crash_at = orchestrator.link.calls + self._world.rng.randint(1, 120)
            self._world.say(f"{orchestrator.name} will be killed at call {orchestrator.link.crash_at}")
        await self._world.pause(1.0)
        await self._boot_later(orchestrator)

    async def _hold_orchestrator(self) -> None:
        orchestrator = self._orchestrator()
        seconds = self._world.rng.choice((0.05, 1.0, 12.0)) * self._world.rng.random()
        self._world.say(f"{orchestrator.name} is held for {seconds:.3f} s")
        orchestrator.link.hold(seconds)

    async def _hold_at_a_call(self) -> None:
        """What it has just sent, and what it sends while it believes to lead, comes when another one leads."""
        for orchestrator in self._world.orchestrators:
            if orchestrator.up and orchestrator.lease.leading:
                link = orchestrator.link
                link.hold_at, link.hold_s = (
                    link.calls + self._world.rng.randint(1, 60),
                    self._world.rng.uniform(2.0, 9.0),
                )
                self._world.say(f"{orchestrator.name} will be held for {link.hold_s:.3f} s")

    async def _kill_agent(self) -> None:
        self._world.say("the agent is killed")
        self._world.agent.kill()
        await self._world.pause(0.5)
        if self._world.agent.host.server is None:
            self._world.agent.boot()

    async def _kill_sidecar(self) -> None:
        instances = list(self._world.agent.instances.values())
        if instances:
            supervised = self._world.rng.choice(instances)
            self._world.say(f"sidecar {supervised.spec.name} is killed")
            supervised.crash()

    async def _kill_component(self) -> None:
        sidecars = [item.sidecar for item in self._world.agent.instances.values() if item.sidecar is not None]
        if sidecars:
            self._world.rng.choice(sidecars).component_died.set()

    async def _cut_streams(self) -> None:
        self._orchestrator().link.break_streams()

    async def _registry_away(self) -> None:
        self._world.registry.host.server = None
        await self._world.pause(1.0)
        self._world.registry.host.server = self._world.registry

    async def _push(self) -> None:
        rng = self._world.rng
        self._world.registry.push(rng.choice(("hook", "work")), broken=rng.random() < 0.2)


def _mistaken(world: World, told: dict[str, Any]) -> None:
    if isinstance(told.get("exception"), MISTAKES):
        world.violated(f"{told['message']}: {told['exception']!r}")


async def _simulate(seed: int) -> World:
    world = World(seed)
    rng = Random(seed + 1)
    person = Person(world)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, told: _mistaken(world, told))
    faults, world.network.faults = world.network.faults, Faults()
    others: list[asyncio.Task[None]] = []
    try:
        while not any(item.lease.leading for item in world.orchestrators):
            await world.pause(0.01)
        for verb in ("create", "publish", *(("start",) if rng.random() < 0.7 else ())):
            await person.does(verb)
        await world.pause(rng.choice((0.02, 1.0)))
        world.network.faults = faults
        changing = world.triggers == Trigger.CHANGING
        until = loop.time() + (20.0 if changing else rng.choice((0.5, 3.0, 10.0)))
        others = [
            loop.create_task(Breaker(world, rng.choice((0.0, 0.5, 3.0))).run()),
            loop.create_task(world.traffic(until)),
        ]
        while loop.time() < until:
            await world.pause(rng.choice((0.02, 0.2, 2.0)))
            verb = rng.choice(FITTING.get(world.flow().state, VERBS) if rng.random() < 0.8 else VERBS)
            if changing and rng.random() < 0.5:
                verb = "start" if world.flow().state == FlowState.STOPPED else "publish"
            if verb == "publish":
                await person.does("draft")
            await person.does(verb)
        others[0].cancel()
        world.heal()
        # What is on its way arrives.
        held_s = max(item.link.held_until for item in world.orchestrators) - loop.time()
        await world.pause(2 * (LONGEST_LATE_S + max(0.0, held_s)))
        rest = Rest(world)
        await rest.settle()
        if world.flow().state == FlowState.SUSPENDED and rng.random() < 0.7:
            await person.does("resume")
            await rest.settle()
        await world.sweep()
        rest.check()
    finally:
        for task in others:
            task.cancel()
        results = await asyncio.gather(*others, return_exceptions=True)
        await world.close()
        for result in results:
            if isinstance(result, Exception):
                raise result
    return world


def run(seed: int) -> World:
    """One run; look at `violations` and `trace` of what it answers."""
    logging.disable(logging.CRITICAL)
    random.seed(seed)  # for jitter in what is simulated
    try:
        return run_in_virtual_time(_simulate(seed))
    finally:
        logging.disable(logging.NOTSET)
