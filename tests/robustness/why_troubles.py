"""Troubles of flows: what is done from outside, and what `why` is to say first. Those of steps have one flow together,
which sends every message to all of them; those of flows have a flow for each story, one trouble after the other."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import grpc

from headrace.api.agent.v1 import agent_pb2, agent_pb2_grpc
from headrace.api.flow.v1 import flow_pb2
from headrace.client import DeadlineExceeded, HeadraceError
from headrace.model.causes import Cause
from tests.robustness.moody_flow import CHAIN, MoodyFlow
from tests.support.eventually import eventually
from tests.support.http_connection import fetch

Do = Callable[[MoodyFlow], Awaitable[None]]
C = Cause


async def nothing(flow: MoodyFlow) -> None:
    """What its messages say is all."""


@dataclass(frozen=True)
class Trouble:
    """`says` must stand in the summary or the evidence, `types` in a command; `affects` begin the steps that are held
    up; `also` are causes that must be named too. `do` is what the step of this name does with its messages."""

    name: str
    cause: Cause
    says: str = ""
    types: str = ""
    do: str = ""
    inject: Do = nothing
    settings: str = ""
    step: str = ""
    affects: tuple[str, ...] = ()
    also: tuple[Cause, ...] = ()


@dataclass(frozen=True)
class Story:
    """A flow, and what happens to it."""

    troubles: tuple[Trouble, ...]
    steps: dict[str, str]
    head: str = ""
    starts: bool = True
    heals: bool = False
    """Whether nothing is wrong once the file is gone."""


def kills(role: str, step: str, number: int = signal.SIGKILL) -> Do:
    """Sends a signal to a step's sidecar or component."""

    async def inject(flow: MoodyFlow) -> None:
        flow.mesh.kill(role, flow.name, step, number)

    return inject


def halts(role: str, step: str) -> Do:
    return kills(role, step, signal.SIGSTOP)


def stopped_by_somebody_else(step: str) -> Do:
    """The agent is told to stop an instance with a generation that the orchestrator does not reach."""

    async def inject(flow: MoodyFlow) -> None:
        async with grpc.aio.insecure_channel(flow.mesh.endpoints.agent) as channel:
            stub: agent_pb2_grpc.AgentServiceAsyncStub = agent_pb2_grpc.AgentServiceStub(channel)
            name = f"default.{flow.name}.d1.{step}.0"
            await stub.StopInstance(agent_pb2.StopInstanceRequest(name=name, generation=1 << 60), timeout=20)

    return inject


LATER = "retry: {attempts: 3, backoff: 20s, jitter: 0}"
# Messages that each of them gets, of at most 20.
MESSAGES = 18
OF_STEPS = (
    Trouble("busy", C.COMPONENT_BUSY, "until_gone in component.py", "flow scale", "wait", settings="prefetch: 2"),
    Trouble("blocked", C.COMPONENT_BLOCKED, "until_gone_at_once in component.py", "headrace logs", "block"),
    Trouble("retries", C.RETRY_DELAY, "SHAKY: not today", "headrace logs", "fail", settings=LATER),
    Trouble("rebounds", C.REBOUND_DELAY, "is due in", "headrace logs", "later"),
    Trouble("refused", C.WRONG_CREDENTIALS, "401 Unauthorized", "headrace logs", "refused", settings=LATER),
    Trouble("poisoned", C.POISON_MESSAGE, "down", "dead-letters list", "die"),
    Trouble("paced", C.STEP_RATE_LIMIT, "wait for their turn", "--policy", settings="rate_limit: 12/m"),
    Trouble("slow", C.STEP_TOO_SLOW, "of at most 20", "flow scale", "slow", settings="prefetch: 1"),
    Trouble("halted", C.COMPONENT_STOPPED, "is stopped", "kill -CONT", inject=halts("component", "halted")),
    Trouble("absent", C.NOT_SCHEDULED, "does not know", "headrace status", inject=stopped_by_somebody_else("absent")),
)  # fmt: skip


async def fills_the_flow(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(24, last="wait")


async def held_in_init(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.client.begin_start(flow.name)


async def fails_in_init(flow: MoodyFlow) -> None:
    flow.hold()
    try:
        await flow.client.start(flow.name)
    except HeadraceError:
        return
    raise AssertionError("it started")


async def crashes(flow: MoodyFlow) -> None:
    """From its next start on it ends by itself, a moment after it was initialised."""
    flow.hold()
    flow.mesh.kill("component", flow.name, "work")


async def suspended(flow: MoodyFlow) -> None:
    await flow.client.suspend(flow.name)


async def rejected(flow: MoodyFlow) -> None:
    flow.hold()
    await flow.inject(2, work="reject")


async def too_many_callers(flow: MoodyFlow) -> None:
    for _ in range(6):
        await fetch(flow.mesh.gateway, "POST", f"/hook/{flow.name}", b"{}", {})


async def busy_too(flow: MoodyFlow) -> None:
    await flow.inject(2, work="wait")


async def stop_takes_long(flow: MoodyFlow) -> None:
    try:
        await flow.client.stop(flow.name, timeout_s=0.5)
    except DeadlineExceeded:
        return
    raise AssertionError("it stopped")


async def stopped(flow: MoodyFlow) -> None:
    flow.release()

    async def over() -> bool:
        return (await flow.client.get_status(flow.name)).state == flow_pb2.FLOW_STATE_STOPPED

    await eventually(over, within_s=15)


BUSY = "until_gone in component.py"
STORIES = (
    Story(
        (
            Trouble(
                "full-downstream", C.COMPONENT_BUSY, "until_gone_at_once in component.py", "flow scale", step="last",
                inject=fills_the_flow, affects=("work", "entry"), also=(C.DOWNSTREAM_FULL,),
            ),
        ),
        {"work": "function: work, to: [last], prefetch: 2", "last": CHAIN["last"]},
        head="max_waiting: 10",
        heals=True,
    ),
    Story(
        (
            Trouble("warm-up", C.WARM_UP_SLOW, BUSY, "flow cancel", step="work", inject=held_in_init),
        ),
        {"work": "function: work, config: {hold: FILE}"},
        starts=False,
    ),
    Story(
        (
            Trouble(
                "crash-loop", C.CRASH_LOOP, "exit status 9", "headrace logs", step="work",
                inject=crashes,
            ),
        ),
        {"work": "function: work, config: {crash: FILE}"},
    ),
    Story(
        (Trouble("silent", C.SIDECAR_SILENT, "asked twice", "ps -o", step="work", inject=halts("sidecar", "work")),),
        {"work": "function: work"},
    ),
    Story(
        (Trouble("failed-start", C.FLOW_STOPPED, "no licence", "flow start", inject=fails_in_init),),
        {"work": "function: work, config: {broken: FILE}"},
        starts=False,
    ),
    Story(
        (
            Trouble("suspended", C.FLOW_SUSPENDED, "kept", "flow resume", inject=suspended),
            Trouble(
                "suspended-and-silent", C.FLOW_SUSPENDED, "kept", "flow resume",
                inject=halts("sidecar", "work"), also=(C.SIDECAR_SILENT,),
            ),
        ),
        {"work": "function: work"},
    ),
    Story(
        (
            Trouble(
                "suspended-by-message", C.SUSPENDED_BY_MESSAGE, "NO_PRICE: it has no price", "headrace logs",
                step="work", inject=rejected,
            ),
        ),
        {"work": "function: work, on_error: suspend-flow"},
    ),
    Story(
        (
            Trouble(
                "dead-letters", C.MESSAGES_FAIL, "NO_PRICE: it has no price", "letters list", step="work",
                inject=rejected,
            ),
            Trouble(
                "flow-rate", C.FLOW_RATE_LIMIT, "refused in the last minute", "--policy", inject=too_many_callers,
                also=(C.MESSAGES_FAIL,),
            ),
            Trouble(
                "busy-and-failing", C.COMPONENT_BUSY, BUSY, "flow scale", step="work", inject=busy_too,
                also=(C.MESSAGES_FAIL, C.FLOW_RATE_LIMIT),
            ),
            Trouble(
                "stop-takes-long", C.COMPONENT_BUSY, BUSY, "flow scale", step="work", inject=stop_takes_long,
                also=(C.DRAINING_TOO_LONG,),
            ),
            Trouble("stopped", C.FLOW_STOPPED, "stopped", "flow start", inject=stopped),
        ),
        {"work": "function: work"},
        head="rate_limit: 3/s",
    ),
)  # fmt: skip
