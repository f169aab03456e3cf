"""Live latency on a real mesh: `WatchHops` by client and grpcurl, `headrace top` in a pseudo-terminal and a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import nats
import pytest

from headrace.api.hop.v1 import hop_pb2
from headrace.client import AsyncClient, NotFound
from headrace.model import subjects
from tests.support.commands import COMMAND, headrace
from tests.support.eventually import eventually
from tests.support.mesh import RunningMesh
from tests.support.small_flow import HEAD, SmallFlow
from tools.terminal_session import CURSOR_OFF, CURSOR_ON, TerminalSession

CODE = """
@component.action
async def act(order: dict, ctx: Context) -> None:
    if order.get("fail"):
        raise ComponentError("BAD", "told to", retryable=True)
    await ctx.reply({"said": "yes"})
"""
RETRY = "retry: {attempts: 2, backoff: 50ms}"


@pytest.fixture(scope="module")
def flow(module_mesh: RunningMesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SmallFlow]:
    made = SmallFlow.write(module_mesh, tmp_path_factory.mktemp("top"), HEAD + CODE, act=RETRY)
    made.run()
    yield made
    made.remove()


class Watch:
    """Keeps the newest message of a watch."""

    def __init__(self) -> None:
        self.messages: list[hop_pb2.WatchHopsResponse] = []
        self.error: BaseException | None = None

    def window(self, seconds: int) -> hop_pb2.HopWindow:
        return next(window for window in self.messages[-1].windows if window.seconds == seconds)

    def step(self, name: str, seconds: int = 60) -> hop_pb2.StepWindow:
        found = (step for step in self.window(seconds).steps if step.step == name)
        return next(found, hop_pb2.StepWindow())


@contextlib.asynccontextmanager
async def watching(client: AsyncClient, flow: str) -> AsyncIterator[Watch]:
    """Ready when the first message is there: what comes from now on is counted."""
    watch = Watch()

    async def follow() -> None:
        try:
            async with contextlib.aclosing(client.watch_hops(flow, windows=(1, 10, 60))) as messages:
                async for message in messages:
                    watch.messages.append(message)
        except NotFound as error:
            watch.error = error

    task = asyncio.create_task(follow())
    try:
        await eventually(lambda: watch.messages)
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_rates_latencies_errors_and_what_can_be_looked_at(flow: SmallFlow) -> None:
    async with AsyncClient(flow.mesh.api) as client, watching(client, flow.name) as watch:
        begin = time.monotonic()
        answers = [await flow.post() for _ in range(40)]
        await eventually(lambda: watch.step("act").hop.count == 40)
        lines = {(line.step, line.phase, line.receiver): line for line in watch.window(60).phases}
        parts = [lines["act", phase, ""].latency for phase in ("queue", "sidecar-in", "component", "sidecar-out")]
        whole = sum(part.mean_us for part in parts) + lines["act", "publish", "gateway"].latency.mean_us
        assert whole == pytest.approx(lines["act", "hop", "gateway"].latency.mean_us, rel=0.05)
        refused = [await flow.post(b'{"fail": true}') for _ in range(3)]
        took_s = time.monotonic() - begin
        assert {answer.status for answer in answers} == {200}
        assert {answer.status for answer in refused} == {500}
        await eventually(lambda: watch.step("gateway").counts.processed == 43)
        act, counts = watch.step("act"), watch.step("act").counts
        assert (counts.processed, counts.failed, counts.retried, counts.dead_lettered) == (40, 6, 3, 3)
        assert watch.step("receive").counts.processed == 43
        # Of the last seconds that were watched.
        covered_s = watch.window(60).covered.ToMicroseconds() / 1e6
        assert act.rate == pytest.approx(40 / covered_s)
        assert act.error_rate == pytest.approx(6 / covered_s)
        assert covered_s <= took_s + 4
        # The failing ones were tried twice, so their hops are left out; those of the others are all there.
        assert act.hop.count == 40
        assert 0 < act.hop.p50_us <= act.hop.p95_us <= act.hop.p99_us <= act.hop.max_us * 1.05
        lines = {(line.step, line.phase, line.receiver): line for line in watch.window(60).phases}
        slow = lines["act", "hop", "gateway"].exemplars
        assert 1 <= len(slow) <= 3
        executions = {answer.headers.get("headrace-execution") for answer in answers}
        assert {exemplar.execution_id for exemplar in slow} <= executions
        # Once it is quiet, the short window is empty and the long one is not.
        await eventually(lambda: not watch.step("act", 1).counts.processed)
        assert watch.step("act", 60).counts.processed == 40


async def test_however_many_watch_the_instances_are_asked_once_a_second(flow: SmallFlow) -> None:
    asked: list[float] = []

    async def note(message: Any) -> None:
        asked.append(time.monotonic())

    connection = await nats.connect(flow.mesh.endpoints.nats)
    await connection.subscribe(subjects.hop_request_subject("default", flow.name), cb=note)
    await connection.flush()
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(AsyncClient(flow.mesh.api)) for _ in range(3)]
        watches = await asyncio.gather(
            *(stack.enter_async_context(watching(client, flow.name)) for client in clients for _ in range(10))
        )
        asked.clear()
        begin = time.monotonic()
        await eventually(lambda: all(len(watch.messages) >= 3 for watch in watches))
        assert len(asked) <= time.monotonic() - begin + 1.5
        assert len({watch.messages[-1].time.ToNanoseconds() for watch in watches}) <= 2
    await connection.close()


async def test_a_watch_outlives_killed_sidecars_and_orchestrators_and_shows_both_revisions(flow: SmallFlow) -> None:
    async with AsyncClient(flow.mesh.api) as client, watching(client, flow.name) as watch:
        before = watch.step("act").counts.processed
        for _ in range(5):
            await flow.post()
        await eventually(lambda: watch.step("act").counts.processed == before + 5)
        flow.mesh.kill("sidecar", flow.name, "act")
        for _ in range(5):
            assert (await flow.post()).status == 200
        # It counts from zero again, and both counts are in the window.
        await eventually(lambda: watch.step("act").counts.processed == before + 10)
        old = watch.step("act").revision
        flow.push(HEAD + CODE + "# newer\n")
        await client.restart(flow.name)
        for _ in range(5):
            await flow.post()
        await eventually(lambda: len({step.revision for step in watch.window(60).steps if step.step == "act"}) == 2)

        def counted() -> dict[bool, int]:
            steps = [step for step in watch.window(60).steps if step.step == "act"]
            return {step.revision == old: step.counts.processed for step in steps}

        await eventually(lambda: counted() == {True: before + 10, False: 5})
        flow.mesh.kill("orchestrator")
        heard = len(watch.messages)
        await eventually(lambda: len(watch.messages) > heard + 1, within_s=20)
        await flow.post()
        await eventually(lambda: watch.step("act").counts.processed >= 1)


async def test_a_flow_that_is_deleted_ends_its_watch_and_one_that_is_not_there_begins_none(
    module_mesh: RunningMesh, tmp_path: Path
) -> None:
    short = SmallFlow.write(module_mesh, tmp_path, HEAD + CODE)
    short.publish()
    async with AsyncClient(module_mesh.api) as client:
        assert "no step runs" in headrace("top", short.name, "--once", data=module_mesh.data).ok()
        async with watching(client, short.name) as watch:
            assert not watch.messages[-1].instances, "it is stopped"
            await client.delete_flow(short.name)
            await eventually(lambda: watch.error)
        with pytest.raises(NotFound):
            await anext(client.watch_hops(short.name))


def test_the_real_grpcurl_watches(flow: SmallFlow, grpcurl: str) -> None:
    request = {"flow": f"flows/{flow.name}", "windows": [1, 60], "step": "act", "phases": ["hop"], "messages": 2}
    method = "headrace.api.hop.v1.HopService/WatchHops"
    command = [grpcurl, "-plaintext", "-d", json.dumps(request), flow.mesh.api, method]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"windows"') == 2
    for wrong, field in (
        ({"windows": [5]}, "windows"),
        ({"phases": ["all"]}, "phases"),
        ({"period": "0.5s"}, "period"),
    ):
        refused = headrace("rpc", "HopService/WatchHops", json.dumps(request | wrong), data=flow.mesh.data)
        assert refused.status == 64 + 3
        assert field in refused.error


def test_top_on_a_terminal_follows_its_keys_and_its_size_and_leaves_no_trace(flow: SmallFlow) -> None:
    command = [*COMMAND, "top", flow.name, "--data", str(flow.mesh.data)]
    with TerminalSession(command, columns=120, lines=16) as session:
        session.until(r"^act +RUNNING")
        asyncio.run(_post(flow, 10))
        frame = session.until(r"^act +RUNNING .* [1-9]\S* +\d+\.\d+ ")
        assert len(frame) == 16
        assert frame[0].startswith(f"{flow.name}  RUNNING")
        assert frame[1].split()[:5] == ["STEP", "STATE", "REVISION", "INST", "RATE/s"]
        session.send("s")
        session.until("sorted by rate")
        session.send("/act\r")
        assert not [line for line in session.until("filter: act  q quit") if line.startswith("gateway")]
        session.send("\r")
        opened = session.until(r"^component ")
        assert [line for line in opened if line.startswith("hop ")]
        session.send("t")
        shown = session.until("^headrace trace [0-9a-f]{32}$")[-1]
        session.send("\x1b")
        session.until("^STEP")
        session.resize(60, 10)
        narrow = session.until(r"^STEP(?!.*MAX ms)", lines=10)
        assert max(map(len, narrow)) <= 60
        session.resize(20, 3)
        session.until(r"^STEP +RATE/s( +P50 ms)?$", lines=3)
        session.send("q")
        assert session.wait() == 0
        assert session.after == f"{shown}\n"
        assert session.attributes_now() == session.attributes
        assert session.output.count(CURSOR_OFF) == session.output.count(CURSOR_ON) > 0


def test_top_gives_the_terminal_back_at_control_c(flow: SmallFlow) -> None:
    with TerminalSession([*COMMAND, "top", "--data", str(flow.mesh.data)], columns=80, lines=10) as session:
        session.until(r"RUNNING")
        session.send("\x03")
        assert session.wait() == 0
        assert session.after == ""
        assert session.attributes_now() == session.attributes


def test_top_elsewhere_is_text_or_json(flow: SmallFlow) -> None:
    once = headrace("top", flow.name, "--once", data=flow.mesh.data).ok().splitlines()
    assert once[0].startswith(f"{flow.name}  RUNNING  version 1  deployment")
    shown = [line.split()[0] for line in once[1:]]
    assert [word for word in shown if word in ("STEP", "receive", "act")] == ["STEP", "receive", "act"]
    facts = headrace("top", "--json", "--once", "--window", "60", data=flow.mesh.data).json()
    found = next(item for item in facts["flows"] if item["flow"] == flow.name)
    assert {"step", "rate", "p99_us", "waiting", "digest"} <= found["steps"][1].keys()
    assert "there is no flow" in headrace("top", "nothing-here", data=flow.mesh.data).refused()
    assert "no mesh answers" in headrace("top", "--address", "127.0.0.1:1", "--once").refused(3)


async def _post(flow: SmallFlow, count: int) -> None:
    for _ in range(count):
        await flow.post()
