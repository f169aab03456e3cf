"""The demo's course: components pushed, flow started, orders posted, answers and effects checked."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.component import pushed_words
from headrace.cli.demo_example import Example, load_example
from headrace.cli.demo_letters import LettersAct, has_third_act
from headrace.cli.demo_pinning import PinningAct, has_second_act
from headrace.cli.demo_report import DemoResult, next_text
from headrace.cli.http_caller import HttpAnswer, call_all
from headrace.cli.mesh import Mesh
from headrace.cli.order_check import check_orders
from headrace.client import AsyncClient
from headrace.client.apply import AppliedComponent
from headrace.model.errors import DeadlineExceeded, HeadraceError, InvalidInput

ANSWER_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 15.0
SETTLE_LOOK_S = 0.05
EXECUTION = "headrace-execution"


class DemoRun:
    """One run in a mesh that has just been started; `say` gets a line per stage, `tell` the result
    after each act, and whether that was the last one."""

    def __init__(
        self,
        *,
        example: Path | None,
        connections: int,
        rate: float,
        stay: bool,
        say: Callable[[str], None],
        tell: Callable[[DemoResult, bool], None],
    ) -> None:
        self._example_folder = example
        self._connections = connections
        self._rate = rate
        self._stay = stay
        self._say = say
        self._tell = tell
        self._start_s: dict[str, float] = {}

    async def __call__(self, mesh: Mesh, stopping: asyncio.Event) -> int:
        """Answers the exit status: 0, or 1 if an order differs. With `stay` it ends when `stopping` is set."""
        data = mesh.directory.path
        self._start_s["mesh"] = mesh.start_s
        broker = f"nats-server {mesh.broker_version}, {mesh.options.profile}"
        self._say(f"mesh: started in {mesh.start_s:.2f} s ({broker}), data {data}")
        example = load_example(self._example_folder, effects=data / "effects.jsonl")
        async with AsyncClient(mesh.endpoints.api) as client:
            await self._bring_up(client, example)
            result = await self._post_and_check(client, example, mesh.options.profile)
            goes_on = result.ok and has_second_act(example)
            self._tell(result, not goes_on)
            if goes_on:
                host, port = await self._webhook(client, example)
                self._say("second act: orders keep flowing while new code is pushed")
                result.pinning = await PinningAct(mesh, client, example, host, port, self._say).run()
                goes_on = result.ok and has_third_act(example)
                self._tell(result, not goes_on)
            if goes_on:
                self._say("third act: an order that cannot be priced is corrected and sent again")
                result.letters = await LettersAct(client, example, self._say).run()
                self._tell(result, True)
        if self._stay:
            url = result.status.webhook_url
            self._say(next_text(flow=example.flow, data=str(data), webhook_url=url, sample=example.sample))
            await stopping.wait()
            self._say("stopping")
        return 0 if result.ok else 1

    async def _bring_up(self, client: AsyncClient, example: Example) -> None:
        def tell(component: AppliedComponent) -> None:
            self._say(f"{component.component}: {pushed_words(component.revision, component.created)}")

        began = time.perf_counter()
        await client.apply(example.flow_file, pushed=tell)
        applied = time.perf_counter()
        version = await client.publish(example.flow)
        published = time.perf_counter()
        started = await client.start(example.flow)
        running = time.perf_counter()
        self._start_s |= {"push": applied - began, "publish": published - applied, "flow": running - published}
        self._start_s = {"total": sum(self._start_s.values()), **self._start_s}
        self._say(
            f"{example.flow}: version {version.version} RUNNING as deployment {started.deployment}, "
            f"started in {self._start_s['flow']:.2f} s"
        )

    async def _post_and_check(self, client: AsyncClient, example: Example, profile: str) -> DemoResult:
        host, port = await self._webhook(client, example)
        began = time.perf_counter()
        stopping = threading.Event()
        try:
            answers = await asyncio.to_thread(
                call_all,
                example.requests,
                host=host,
                port=port,
                connections=self._connections,
                rate=self._rate,
                timeout_s=ANSWER_TIMEOUT_S,
                stopping=stopping,
            )
        finally:
            stopping.set()
        took_s = time.perf_counter() - began
        pace = f"{self._rate:g} a second" if self._rate else "as fast as they are answered"
        over = f"over {self._connections} connections" if self._connections > 1 else "over one connection"
        self._say(f"orders: {len(answers)} posted {over}, {pace}, in {took_s:.2f} s")
        status = await self._settled(client, example)
        await self._say_slowest(client, answers)
        effects = example.read_effects()
        return DemoResult(
            profile=status.profile or profile,
            orders=len(example.expected),
            differences=check_orders(example.expected, answers, effects),
            start_s=self._start_s,
            status=status,
            hops=await client.hops(example.flow),
            latencies_us=[answer.latency_us for answer in answers if _through_the_flow(answer)],
            unread_us=[answer.unread_ns / 1000 for answer in answers if _through_the_flow(answer)],
            effects=len(effects),
            stage_ms=_stages(status),
        )

    async def _say_slowest(self, client: AsyncClient, answers: Sequence[HttpAnswer]) -> None:
        """Where a Jaeger is known: the trace of the order that took longest."""
        slowest = max(filter(_through_the_flow, answers), key=lambda answer: answer.latency_us, default=None)
        with contextlib.suppress(HeadraceError):
            link = (await client.get_trace(slowest.headers[EXECUTION])).link if slowest is not None else ""
            if link and slowest is not None:
                self._say(f"the slowest order took {slowest.latency_us / 1000:.1f} ms; its trace: {link}")

    async def _webhook(self, client: AsyncClient, example: Example) -> tuple[str, int]:
        url = (await client.get_status(example.flow)).webhook_url
        host, _, port = url.removeprefix("http://").partition("/")[0].rpartition(":")
        if not port.isdigit():
            raise InvalidInput(f"the flow {example.flow} has no webhook address: {url!r}", reason="NO_WEBHOOK")
        return host, int(port)

    async def _settled(self, client: AsyncClient, example: Example) -> flow_pb2.FlowStatus:
        """The status once nothing waits and nothing is in work: every effect is there then."""
        deadline = time.monotonic() + SETTLE_TIMEOUT_S
        while True:
            status = await client.get_status(example.flow)
            if not any(step.waiting or step.in_flight for step in status.steps):
                return status
            if time.monotonic() > deadline:
                raise DeadlineExceeded(
                    f"messages still wait {SETTLE_TIMEOUT_S:g} s after the last answer",
                    next_step="See what holds them: headrace flow status",
                )
            await asyncio.sleep(SETTLE_LOOK_S)


def _through_the_flow(answer: HttpAnswer) -> bool:
    """Not what the gateway answered by itself, nor what it gave again for a repeated key."""
    return "headrace-deployment" in answer.headers and "headrace-replayed" not in answer.headers


def _stages(status: flow_pb2.FlowStatus) -> dict[str, dict[str, float]]:
    """Per step, the stages of the start of its first instance; the deployment's own under `deployment`."""
    flow = status.flow.removeprefix("flows/")
    stages = {f"({flow})": dict(item.deployment.start_ms) for item in status.deployments}
    for step in status.steps:
        if step.instances:
            stages[step.step] = dict(step.instances[0].stage_ms)
    return stages
