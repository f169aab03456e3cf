"""Fuzzing of what a sidecar, an agent and a gateway take from others. Each test prints its seed and how many inputs it
tried; a soak multiplies them.

Held: the process stays the same one and small; no status INTERNAL or 500; nothing unexpected in a log; whatever was
stored ends somewhere; and at the end it works as ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest

from headrace.api.agent.v1 import agent_pb2
from headrace.api.message.v1 import message_pb2
from headrace.api.sidecar.v1 import sidecar_pb2
from headrace.edge.broker_process import BrokerProcess
from headrace.edge.child_process import ChildProcess, Command
from headrace.edge.grpc_channel import open_channel
from headrace.edge.process_table import resident_bytes
from headrace.wire.envelope import encode_envelope
from tests.robustness.fuzzing_component import SOURCE
from tests.support import soak
from tests.support.eventually import eventually
from tests.support.fuzz import blob, fill, mutated, text
from tests.support.gateway_rig import GatewayRig
from tests.support.sidecar import SidecarBench, sidecar_bench
from tests.support.step_assets import STEP

ROUNDS = soak.rounds(one_in=200, short=1)
SEED = int(os.environ.get("HEADRACE_SEED") or random.SystemRandom().randrange(2**31))
GROWTH_MB = 60
UNEXPECTED = ("Traceback", "unexpected", "could not be handed over", "never retrieved", "Exception in callback")
MEBIBYTE = 1024 * 1024
ROOT = str(Path(__file__).parents[2])


def memory_mb(pid: int) -> float:
    return resident_bytes(pid) / MEBIBYTE


def assert_quiet(log: str) -> None:
    for word in UNEXPECTED:
        at = log.find(word)
        assert at < 0, log[max(0, at - 500) : at + 2500]


def say(capsys: pytest.CaptureFixture[str], what: str, tried: int, grown_mb: float) -> None:
    with capsys.disabled():
        print(f"\nfuzzed {what}: {tried} inputs, seed {SEED}, memory +{grown_mb:.1f} MB")


@pytest.mark.timeout(120)
async def test_envelopes(broker: BrokerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Raw bytes, mutated envelopes and envelopes with any content in the step's subject: each is handled or
    dead-lettered, and nothing else happens."""
    rng = random.Random(SEED)
    async with sidecar_bench(broker.url, tmp_path, max_waiting=100_000, timeout_s=5.0) as bench:
        await bench.run()
        pid = bench.sidecar.pid if bench.sidecar else 0
        before_mb = memory_mb(pid)
        tried = 0
        for _ in range(1500 * ROUNDS):
            payload, headers = an_envelope(rng, tried), {"Nats-Msg-Id": f"f{tried}"}
            if rng.random() < 0.2:
                headers["traceparent"] = text(rng).replace("\r", "").replace("\n", "").strip() or "00"
            if rng.random() < 0.1:
                del headers["Nats-Msg-Id"]
            await bench.connection.publish(bench.edge(STEP), payload, headers=headers)
            tried += 1
        await all_received(bench, tried)
        await bench.until_done(within_s=25)  # the ack deadline is 30 s
        before = await bench.waiting()
        await bench.inject(b"fine")
        await eventually(lambda: one_more(bench, before), within_s=20)
        say(capsys, "envelopes", tried, memory_mb(pid) - before_mb)
        status = await bench.status()
        assert status.sidecar_pid == pid
        assert status.component_starts == 1
        assert memory_mb(pid) - before_mb < GROWTH_MB
        assert_quiet(bench.sidecar_log())


async def test_copies_of_a_message_that_is_being_acknowledged_do_not_wait_for_the_ack_deadline(
    broker: BrokerProcess, tmp_path: Path
) -> None:
    """Found by the above: a copy that came between an acknowledgement and its confirmation was acknowledged only when
    it was delivered again."""
    async with sidecar_bench(broker.url, tmp_path, max_waiting=100_000) as bench:
        await bench.run()
        for number in range(3000):
            raw = encode_envelope(message_id=f"m{number // 6}", execution_id="e" * 32, sent_at_unix_ns=1, body=b"x")
            await bench.connection.publish(bench.edge(STEP), raw, headers={"Nats-Msg-Id": f"copy{number}"})
        await all_received(bench, 3000)
        await bench.until_done(within_s=20)  # the ack deadline is 30 s
        assert len({found.message_id for found in await bench.take(500)}) == 500

        async def nothing_waits() -> bool:
            return await bench.waiting() == 0

        await eventually(nothing_waits)  # what was taken is acknowledged a moment later


def an_envelope(rng: random.Random, number: int) -> bytes:
    good = encode_envelope(
        message_id=f"m{number}", execution_id="e" * 32, sent_at_unix_ns=1, body=blob(rng), headers={"a": "b"}
    )
    match rng.randrange(4):
        case 0:
            return blob(rng, 400)
        case 1:
            return mutated(good, rng)
        case 2:
            envelope = fill(message_pb2.Envelope(), rng)
            envelope.id, envelope.execution_id = envelope.id or f"m{number}", envelope.execution_id or "e"
            return bytes(envelope.SerializeToString())
        case _:
            return good


async def all_received(bench: SidecarBench, count: int) -> None:
    """Without acknowledgements nobody says when the broker has stored what was published."""
    await bench.until(lambda status: status.counters["received"] >= count)


async def one_more(bench: SidecarBench, before: int) -> bool:
    return await bench.waiting() == before + 1


@pytest.mark.timeout(120)
@pytest.mark.parametrize(("broken", "inputs"), [(0.0, 400), (0.5, 150)], ids=["well-formed", "mutated"])
async def test_component_frames(
    broker: BrokerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], broken: float, inputs: int
) -> None:
    """A component that says anything: every input ends, and one that is answered properly is delivered."""
    count = tmp_path / "tried"
    source = SOURCE % {"root": ROOT, "seed": SEED, "vary": int(broken > 0), "broken": broken, "count": str(count)}
    async with sidecar_bench(
        broker.url, tmp_path, source=source, timeout_s=1.0, variables={"HEADRACE_RESTART_DELAY_LIMIT_S": "0.2"}
    ) as bench:
        await bench.run()
        pid = bench.sidecar.pid if bench.sidecar else 0
        before_mb = memory_mb(pid)
        for _ in range(inputs * ROUNDS):
            await bench.inject(b"x", reply=True)
        await eventually(lambda: done_but(bench, inputs * ROUNDS // 20), within_s=80, every_s=0.2)
        await bench.inject(b"calm", reply=True)
        try:
            await eventually(lambda: any(reply.body == b"calm" for reply in bench.replies), within_s=30)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{await bench.status()}\n{bench.sidecar_log()[-6000:]}") from error
        tried = sum(map(int, count.read_text().split()))
        say(capsys, f"component frames ({broken:.0%} broken)", tried, memory_mb(pid) - before_mb)
        assert (await bench.status()).sidecar_pid == pid
        assert memory_mb(pid) - before_mb < GROWTH_MB
        assert_quiet(bench.sidecar_log())


async def done_but(bench: SidecarBench, rest: int) -> bool:
    """Rebounds of any length are among the events: those inputs come back later."""
    return await bench.waiting(STEP) <= rest + (await bench.status()).counters["rebounds"]


REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.FAILED_PRECONDITION,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


async def call_at_random(channel: grpc.aio.Channel, service: Any, kinds: dict[str, Any], rng: random.Random) -> None:
    """One call with a random request, or with bytes that are none; AssertionError for an answer that is a failure."""
    name = rng.choice(list(kinds))
    raw = fill(kinds[name](), rng).SerializeToString()
    if rng.random() < 0.4:
        raw = mutated(raw, rng)
    method = f"/{service.full_name}/{name}"
    try:
        if service.methods_by_name[name].server_streaming:
            stream = channel.unary_stream(method)(raw, timeout=1.0)
            await stream.read()
            stream.cancel()
        else:
            await channel.unary_unary(method)(raw, timeout=5.0)
    except grpc.aio.AioRpcError as error:
        if error.code() not in REFUSALS or "Traceback" in (error.details() or ""):
            raise AssertionError(f"{name}({raw!r}): {error.code()}: {error.details()}") from error


@pytest.mark.timeout(120)
async def test_calls_to_a_sidecar(broker: BrokerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All but Shutdown, which is obeyed."""
    rng = random.Random(SEED)
    service = sidecar_pb2.DESCRIPTOR.services_by_name["LifecycleService"]
    kinds = {
        name: getattr(sidecar_pb2, f"{name}Request")
        for name in ("Prepare", "Activate", "Drain", "GetStatus", "WatchStatus")
    }
    async with sidecar_bench(broker.url, tmp_path) as bench:
        await bench.run()
        pid = bench.sidecar.pid if bench.sidecar else 0
        before_mb = memory_mb(pid)
        async with open_channel(bench.address) as channel:
            for _ in range(600 * ROUNDS):
                await call_at_random(channel, service, kinds, rng)
        say(capsys, "lifecycle calls of a sidecar", 600 * ROUNDS, memory_mb(pid) - before_mb)
        assert (await bench.status()).sidecar_pid == pid
        assert memory_mb(pid) - before_mb < GROWTH_MB
        assert_quiet(bench.sidecar_log())


@pytest.mark.timeout(120)
async def test_calls_to_an_agent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is started by chance is within its bound, and ends with it."""
    rng = random.Random(SEED)
    service = agent_pb2.DESCRIPTOR.services_by_name["AgentService"]
    names = ("StartInstance", "StopInstance", "ListInstances", "WatchInstances")
    kinds = {name: getattr(agent_pb2, f"{name}Request") for name in names}
    output: list[bytes] = []
    command = Command((sys.executable, "-m", "tests.support.agent_with_stand_in", str(tmp_path), "3"),
                      on_output=output.append)  # fmt: skip
    agent = ChildProcess.spawn(command, readiness=True)
    try:
        address = str((await agent.ready(20.0))["address"])
        before_mb = memory_mb(agent.pid)
        async with open_channel(address) as channel:
            for _ in range(600 * ROUNDS):
                await call_at_random(channel, service, kinds, rng)
        say(capsys, "calls of an agent", 600 * ROUNDS, memory_mb(agent.pid) - before_mb)
        assert agent.exit_status is None
        assert memory_mb(agent.pid) - before_mb < GROWTH_MB
    finally:
        assert await agent.end(8.0) == 0
    assert_quiet(b"".join(output).decode(errors="replace"))


async def test_bytes_that_are_no_request_are_an_invalid_argument(tmp_path: Path) -> None:
    """Found by the above: gRPC itself answers INTERNAL, and logs a traceback."""
    output: list[bytes] = []
    command = Command((sys.executable, "-m", "tests.support.agent_with_stand_in", str(tmp_path), "1"),
                      on_output=output.append)  # fmt: skip
    agent = ChildProcess.spawn(command, readiness=True)
    try:
        async with open_channel(str((await agent.ready(20.0))["address"])) as channel:
            for name in ("StartInstance", "ListInstances"):
                call = channel.unary_unary(f"/headrace.api.agent.v1.AgentService/{name}")
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call(b"\xff\xff\xff", timeout=5.0)
                assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert "are not the message that this method takes" in (refused.value.details() or "")
            watch = channel.unary_stream("/headrace.api.agent.v1.AgentService/WatchInstances")(b"\xff", timeout=5.0)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await watch.read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    finally:
        await agent.end(5.0)
    assert_quiet(b"".join(output).decode(errors="replace"))


@pytest.mark.timeout(120)
async def test_requests_to_a_gateway(broker: BrokerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Raw bytes, mutated requests, and requests that are right but for their parts: never a 500."""
    rng = random.Random(SEED)
    rig = GatewayRig(broker, tmp_path)
    await rig.open()
    try:
        await rig.flow("fuzzed", reply_timeout_s=2.0)
        await rig.responder("fuzzed")
        gateway = await rig.gateway()
        before_mb = memory_mb(gateway.child.pid)
        statuses: dict[int, int] = {}
        good = b"POST /hook/fuzzed HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-type: application/json\r\n\r\n{}"
        for _ in range(14 * ROUNDS):
            requests = [a_request(rng, good) for _ in range(50)]
            for request, found in zip(requests, await exchange_all(gateway.address, requests), strict=True):
                for status in found:
                    statuses[status] = statuses.get(status, 0) + 1
                    assert status < 500 or status in (503, 504), (status, request)
        ((last,),) = await exchange_all(gateway.address, [good])
        say(capsys, f"webhook requests {dict(sorted(statuses.items()))}", 700 * ROUNDS,
            memory_mb(gateway.child.pid) - before_mb)  # fmt: skip
        assert last == 200
        assert memory_mb(gateway.child.pid) - before_mb < GROWTH_MB
        assert gateway.child.exit_status is None
        assert_quiet(gateway.log_file.read_text(errors="replace"))
    finally:
        await rig.close()


def a_request(rng: random.Random, good: bytes) -> bytes:
    match rng.randrange(4):
        case 0:
            return blob(rng, 300)
        case 1:
            return mutated(good, rng)
        case _:
            method = rng.choice(("POST", "GET", "PUT", "OPTIONS", "TRACE", "POST", "post", "CONNECT"))
            target = rng.choice(("/hook/fuzzed", "/hook/fuzzed/", "/hook/", "/hook/nobody", "/healthz", "*", "/%00",
                                 "//", "/hook/../x", "/hook/" + "x" * 5000, "/hook/fuzzed?" + "q" * 999))  # fmt: skip
            names = ("idempotency-key", "content-type", "traceparent", "transfer-encoding", "content-length", "expect",
                     "x-a", "cookie", "connection", "upgrade", "headrace-path", "host")  # fmt: skip
            values = ("", "chunked", "0", "2", "-1", "1e9", "99999999999999999999", "application/json", "100-continue",
                      "close", "websocket", "00-" + "a" * 32 + "-" + "b" * 16 + "-01", "k" * 300, "\x7f")  # fmt: skip
            lines = [f"{rng.choice(names)}: {rng.choice(values)}" for _ in range(rng.randrange(6))]
            body = blob(rng)
            if rng.random() < 0.7:
                lines.append(f"content-length: {len(body)}")
            return "\r\n".join([f"{method} {target} HTTP/1.1", *lines, "", ""]).encode() + body


async def exchange_all(address: str, requests: list[bytes]) -> list[list[int]]:
    return await asyncio.gather(*(exchange(address, request) for request in requests))


async def exchange(address: str, request: bytes) -> list[int]:
    """Sends the bytes and no more; the statuses that come back before it is quiet for a while."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    answer = b""
    with contextlib.suppress(TimeoutError, ConnectionError):
        writer.write(request)
        while True:
            async with asyncio.timeout(0.4):
                chunk = await reader.read(65536)
            if not chunk:
                break
            answer += chunk
    writer.close()
    return [int(line[:3]) for line in answer.split(b"HTTP/1.1 ")[1:] if line[:3].isdigit()]
