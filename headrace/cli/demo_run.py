"""The demo's course: mesh up, components pushed, flow started, orders posted, answers and effects checked."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TextIO

from headrace.api.flow.v1 import flow_pb2
from headrace.cli.component import pushed_words
from headrace.cli.demo_example import Example, load_example
from headrace.cli.demo_report import DemoResult, next_text
from headrace.cli.http_caller import HttpAnswer, call_all
from headrace.cli.mesh import Mesh
from headrace.cli.mesh_plan import MeshOptions
from headrace.cli.order_check import check_answers, check_effects
from headrace.client import AsyncClient
from headrace.client.apply import AppliedComponent
from headrace.model.errors import DeadlineExceeded, InvalidInput

ANSWER_TIMEOUT_S = 30.0
SETTLE_TIMEOUT_S = 15.0
SETTLE_LOOK_S = 0.05
STOP_TIMEOUT_S = 4.5


class DemoRun:
    """One run; `out` gets a line per stage."""

    def __init__(self, *, example: Path | None, data: Path | None, profile: str, connections: int, out: TextIO) -> None:
        self._example_folder = example
        self._data = data
        self._profile = profile
        self._connections = connections
        self._out = out
        self._start_s: dict[str, float] = {}
        self._result: DemoResult | None = None

    async def run(self, *, stay: bool, tell: Callable[[DemoResult], None]) -> DemoResult | None:
        """Answers the result, or None where Ctrl-C came before it. With `stay` it ends by Ctrl-C only."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        interrupted = False

        def interrupt() -> None:
            nonlocal interrupted
            if not interrupted:  # a second Ctrl-C must not break the stop
                interrupted = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            await self._run(stay, tell)
        except asyncio.CancelledError:
            if not interrupted:
                raise
            task.uncancel()
        finally:
            interrupted = True
        return self._result

    async def _run(self, stay: bool, tell: Callable[[DemoResult], None]) -> None:
        with _data_folder(self._data) as data:
            example = load_example(self._example_folder, effects=data / "effects.jsonl")
            async with self._mesh(data) as mesh, AsyncClient(mesh.endpoints.api) as client:
                await self._bring_up(client, example)
                self._result = await self._post_and_check(client, example)
                tell(self._result)
                if stay:
                    url = self._result.status.webhook_url
                    self._say(next_text(data=str(data), webhook_url=url, sample=example.sample))
                    await asyncio.Event().wait()  # until Ctrl-C cancels it

    @contextlib.asynccontextmanager
    async def _mesh(self, data: Path) -> AsyncIterator[Mesh]:
        mesh = Mesh(MeshOptions(data, profile=self._profile), on_notice=self._say)
        try:
            await mesh.start()
            self._start_s["mesh"] = mesh.start_s
            broker = f"nats-server {mesh.broker_version}, {self._profile}"
            self._say(f"mesh: started in {mesh.start_s:.2f} s ({broker}), data {data}")
            yield mesh
        finally:
            began = time.perf_counter()
            await mesh.stop(STOP_TIMEOUT_S)
            self._say(f"mesh: stopped in {time.perf_counter() - began:.2f} s")

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
        self._start_s["total"] = sum(self._start_s.values())
        self._say(
            f"{example.flow}: version {version.version} RUNNING as deployment {started.deployment}, "
            f"started in {self._start_s['flow']:.2f} s"
        )

    async def _post_and_check(self, client: AsyncClient, example: Example) -> DemoResult:
        host, port = await self._webhook(client, example)
        began = time.perf_counter()
        answers = await asyncio.to_thread(
            call_all,
            example.requests,
            host=host,
            port=port,
            connections=self._connections,
            timeout_s=ANSWER_TIMEOUT_S,
        )
        took_s = time.perf_counter() - began
        self._say(f"orders: {len(answers)} posted over {self._connections} connections in {took_s:.2f} s")
        status = await self._settled(client, example)
        effects = example.read_effects()
        differences = check_answers(example.orders, answers) + check_effects(example.orders, effects)
        return DemoResult(
            profile=status.profile or self._profile,
            orders=len(example.orders),
            differences=differences,
            start_s=self._start_s,
            status=status,
            hops=await client.hops(example.flow),
            latencies_us=[answer.latency_us for answer in answers if _through_the_flow(answer)],
            effects=len(effects),
            stage_ms=_stages(status),
        )

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

    def _say(self, line: str) -> None:
        print(line, file=self._out, flush=True)


@contextlib.contextmanager
def _data_folder(given: Path | None) -> Iterator[Path]:
    """A fresh folder: a temporary one that goes at the end, or the empty one given, which stays."""
    if given is None:
        data = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
        try:
            yield data
        finally:
            shutil.rmtree(data, ignore_errors=True)
        return
    data = given.absolute()
    if data.exists() and (not data.is_dir() or any(data.iterdir())):
        raise InvalidInput.at(
            "data",
            str(given),
            "is not empty",
            reason="DEMO_DATA_NOT_EMPTY",
            next_step="The demo counts every effect, so it starts afresh: name an empty folder, or none",
        )
    data.mkdir(parents=True, exist_ok=True)
    yield data


def _through_the_flow(answer: HttpAnswer) -> bool:
    """Not what the gateway answered by itself, nor what it gave again for a repeated key."""
    return "headrace-deployment" in answer.headers and "headrace-replayed" not in answer.headers


def _stages(status: flow_pb2.FlowStatus) -> dict[str, dict[str, float]]:
    """Per step, the stages of the start of its first instance; the deployment's own under `deployment`."""
    stages = {f"({status.flow.removeprefix('flows/')})": dict(item.deployment.start_ms) for item in status.deployments}
    for step in status.steps:
        if step.instances:
            stages[step.step] = dict(step.instances[0].stage_ms)
    return stages
