"""Sending spans to a collector that takes them, refuses them, says nothing, speaks TLS, or is not there."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.edge.broker_process import free_port
from headrace.edge.otlp_channel import OtlpChannel
from headrace.edge.otlp_target import OtlpTarget, read_target
from headrace.edge.span_export import MAX_WAITING, SpanExporter
from headrace.edge.tracing import Tracing
from headrace.model.errors import InvalidInput
from headrace.model.hop_record import SpanCounts
from tests.support.eventually import eventually
from tests.support.otlp_collector import otlp_collector
from tests.unit.test_otlp_spans import hop

# One that can be sent, and what cannot.
HEADERS = "X-Key=a%2Cb,broken,two words=x,line=a%0Ab,key-bin=x,grpc-x=y,=z,n%C3%A4me=x"


@asynccontextmanager
async def exporting(url: str, timeout_ms: int = 300) -> AsyncIterator[SpanExporter]:
    """An exporter to the address, that gives up a call soon; ended, and in time, with the block."""
    target = read_target({"OTEL_EXPORTER_OTLP_ENDPOINT": url, "OTEL_EXPORTER_OTLP_TIMEOUT": str(timeout_ms)})
    assert target is not None
    channel = OtlpChannel(target)
    exporter = SpanExporter(channel.send, SpanCounts(), first_pause_s=0.02)
    task = asyncio.create_task(exporter.run())
    try:
        yield exporter
    finally:
        began = time.monotonic()
        await exporter.close(task)
        assert task.done()
        await channel.close()
        assert time.monotonic() - began < 2.0


async def test_a_process_sends_what_its_environment_says(caplog: pytest.LogCaptureFixture) -> None:
    with otlp_collector() as collector:
        environ = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_HEADERS": HEADERS}
        async with asyncio.TaskGroup() as tasks:
            tracing = Tracing(tasks, environ)
            assert tracing.log.wanted
            tracing.log.add(hop())
            tracing.log.add(hop(sampled=False))
            await eventually(lambda: len(collector.spans) == 6)
            tracing.log.add(hop())
            await tracing.close()  # what is there leaves at once
        assert len(collector.spans) == 12
        assert collector.headers["x-key"] == "a,b"
        counts = tracing.counts
        assert (counts.recorded, counts.left_out, counts.exported, counts.dropped) == (3, 1, 12, 0)
        assert "a,b" not in caplog.text + repr(tracing.target)


async def test_without_an_endpoint_nobody_wants_records(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.TaskGroup() as tasks:
        assert not Tracing(tasks, {}).log.wanted
        assert not Tracing(tasks, {"OTEL_EXPORTER_OTLP_ENDPOINT": "ftp://user:pw@x"}).log.wanted
    assert "ftp://...@x" in str([getattr(record, "fields", {}) for record in caplog.records])
    assert "pw" not in str([getattr(record, "fields", {}) for record in caplog.records])


async def test_what_cannot_be_sent_is_no_reason_to_end_and_tells_no_secret() -> None:
    async def unsendable(request: bytes) -> int:
        return await channel.send(request)

    target = OtlpTarget(f"127.0.0.1:{free_port()}", headers=(("Bad Name", "s3cret"),), timeout_s=0.5)
    channel = OtlpChannel(target)
    exporter = SpanExporter(unsendable, SpanCounts(), first_pause_s=0.01)
    task = asyncio.create_task(exporter.run())
    exporter.put([hop(trace_id="no hexadecimal number")])
    await eventually(lambda: exporter.counts.dropped == 1)
    exporter.put([hop()])
    await eventually(lambda: exporter.counts.dropped == 2)
    assert not task.done()
    assert "cannot be sent" in exporter.counts.problem
    assert "s3cret" not in exporter.counts.problem
    await exporter.close(task)
    await channel.close()


async def test_nobody_there_costs_what_waits_and_nothing_else() -> None:
    async with exporting(f"http://127.0.0.1:{free_port()}") as exporter:
        exporter.put([hop()])
        await eventually(lambda: exporter.counts.problem)
        assert "UNAVAILABLE" in exporter.counts.problem
        began = time.perf_counter()
        exporter.put([hop()] * (MAX_WAITING + 100))
        assert time.perf_counter() - began < 0.05
        assert 100 <= exporter.counts.dropped <= 101
        await eventually(lambda: exporter.counts.dropped > 101)  # a batch is given up after its last try
    assert exporter.counts.exported == 0
    assert exporter.counts.dropped == MAX_WAITING + 101


async def test_a_collector_that_says_nothing_is_given_up_and_found_again() -> None:
    with otlp_collector() as collector:
        collector.deaf.set()
        async with exporting(collector.url, timeout_ms=200) as exporter:
            exporter.put([hop()] * 50)
            await eventually(lambda: exporter.counts.dropped == 50)
            assert "DEADLINE_EXCEEDED" in exporter.counts.problem
            collector.deaf.clear()
            exporter.put([hop()] * 7)
            await eventually(lambda: exporter.counts.exported == 42)
            assert exporter.counts.problem == ""
            assert exporter.counts.dropped == 50


async def test_much_at_once_leaves_the_loop_free() -> None:
    with otlp_collector() as collector:
        async with exporting(collector.url, timeout_ms=10_000) as exporter:
            records = [hop() for _ in range(4_000)]
            exporter.put(records)
            turns: list[float] = []
            before = time.perf_counter()
            while exporter.counts.exported < 24_000:
                await asyncio.sleep(0)
                now = time.perf_counter()
                turns.append(now - before)
                before = now
                assert exporter.counts.dropped == 0
            turns.sort()
            assert turns[len(turns) * 99 // 100] < 0.02
    assert len({span.service for span in collector.spans}) == 2


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of localhost, signed by itself; `key.pem` beside it."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*make.split(), *names], check=True, capture_output=True, timeout=30)
    return certificate


async def test_tls_by_scheme(certificate: Path) -> None:
    key = certificate.with_name("key.pem")
    with otlp_collector(tls=(key.read_bytes(), certificate.read_bytes())) as collector:
        target = read_target(
            {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_EXPORTER_OTLP_CERTIFICATE": str(certificate)}
        )
        assert target is not None
        assert target.secure
        for trusted, taken in ((target, 6), (OtlpTarget(target.address, secure=True, timeout_s=1.0), 0)):
            channel = OtlpChannel(trusted)
            counts = SpanCounts()
            exporter = SpanExporter(channel.send, counts, first_pause_s=0.01)
            exporter.put([hop()])
            await exporter.close(asyncio.create_task(exporter.run()), 5.0)
            await channel.close()
            assert counts.exported == taken


@pytest.mark.parametrize(
    ("environ", "address", "secure"),
    [
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317"}, "c:4317", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "https://c"}, "c:4317", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:9", "OTEL_EXPORTER_OTLP_INSECURE": "true"}, "c:9", False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "c:9"}, "c:9", True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://[::1]:7/"}, "[::1]:7", False),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:2"},
            "b:2",
            False,
        ),
    ],
)
def test_endpoints(environ: dict[str, str], address: str, secure: bool) -> None:
    target = read_target(environ)
    assert target is not None
    assert (target.address, target.secure) == (address, secure)


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("http://", "names no host"),
        ("http://c:x", "is no HOST:PORT"),
        ("ftp://c:1", "is neither"),
        ("http://me:word@c:1", "holds a user name"),
        ("http://c:1/v1/traces", "has a path"),
    ],
)
def test_endpoints_that_are_none(endpoint: str, problem: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        read_target({"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint})
    assert problem in caught.value.message
    assert "word" not in caught.value.message


def test_what_turns_it_off() -> None:
    endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:1"}
    assert read_target({**endpoint, "OTEL_SDK_DISABLED": "true"}) is None
    assert read_target({**endpoint, "OTEL_TRACES_EXPORTER": "none"}) is None
    assert read_target({**endpoint, "OTEL_TRACES_EXPORTER": "none"}, "METRICS") is not None
    with pytest.raises(InvalidInput, match="http/protobuf"):
        read_target({**endpoint, "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"})
