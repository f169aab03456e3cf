"""The data plane's connection, against real servers: who is let in, what breaks it, and that it comes back."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from headrace.edge.broker_process import find_nats_server, free_port
from headrace.edge.nats_link import NatsLink
from headrace.model.errors import InvalidInput, Unavailable
from tests.support.eventually import eventually
from tests.support.tcp_proxy import TcpProxy


class Server:
    """A nats-server of this test's own, with the configuration given."""

    def __init__(self, folder: Path, config: str = "", port: int = 0) -> None:
        self.port = port or free_port()
        self._config = folder / f"{self.port}.conf"
        self._config.write_text(f"listen: 127.0.0.1:{self.port}\n{config}\n")
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        self.process = await asyncio.create_subprocess_exec(
            find_nats_server(), "-c", str(self._config), stderr=asyncio.subprocess.DEVNULL
        )

        async def greets() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
            writer.close()

        async with asyncio.timeout(10):
            while True:
                try:
                    return await greets()
                except OSError:
                    await asyncio.sleep(0.02)  # tidy: pace

    async def end(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()

    def url(self, login: str = "", scheme: str = "nats") -> str:
        return f"{scheme}://{login}{'@' if login else ''}localhost:{self.port}"


@asynccontextmanager
async def server(folder: Path, config: str = "") -> AsyncIterator[Server]:
    running = Server(folder, config)
    await running.start()
    try:
        yield running
    finally:
        await running.end()


@asynccontextmanager
async def link(urls: str, *, timeout_s: float = 5.0, ping_s: float | None = None) -> AsyncIterator[NatsLink]:
    connected = await NatsLink.connect(urls, "link under test", timeout_s=timeout_s, ping_s=ping_s)
    try:
        yield connected
    finally:
        await connected.close()


class Heard:
    """What a subscription of a link got."""

    def __init__(self, link: NatsLink, subject: str) -> None:
        self.bodies: list[bytes] = []
        link.subscribe(subject, lambda frames: self.bodies.extend(frame[3] for frame in frames))


async def say(link: NatsLink, subject: str, body: bytes) -> None:
    link.write(b"PUB %b %d\r\n%b\r\n" % (subject.encode(), len(body), body))
    async with asyncio.timeout(5):
        await asyncio.shield(link.ping())


async def test_what_is_written_comes_back_in_order(tmp_path: Path) -> None:
    async with server(tmp_path) as running, link(running.url()) as connected:
        heard = Heard(connected, "a.*")
        for number in range(5000):
            connected.write(b"PUB a.b 4\r\n%04d\r\n" % number)
        async with asyncio.timeout(10):
            await asyncio.shield(connected.ping())
        assert heard.bodies == [b"%04d" % number for number in range(5000)]
        assert connected.max_payload == 1024 * 1024


LOGINS = {
    "authorization { user: ann, password: 's:e/c@ret' }": ("ann:s%3Ae%2Fc%40ret", "ann:wrong"),
    "authorization { token: hush }": ("hush", ""),
}


@pytest.mark.parametrize("config", LOGINS)
async def test_credentials_of_the_url_are_used_and_never_told(tmp_path: Path, config: str) -> None:
    right, wrong = LOGINS[config]
    async with server(tmp_path, config) as running:
        async with link(running.url(right)) as connected:
            await say(connected, "x", b"y")
        with pytest.raises(Unavailable) as caught:
            await NatsLink.connect(running.url(wrong), "wrong", timeout_s=0.6)
        assert "Authorization Violation" in str(caught.value)
        assert "wrong" not in str(caught.value)


async def test_a_permission_that_is_missing_ends_nothing(tmp_path: Path) -> None:
    config = "authorization { users: [{user: u, password: p, permissions: {publish: {allow: ['ok.>']}}}] }"
    async with server(tmp_path, config) as running, link(running.url("u:p")) as connected:
        heard = Heard(connected, ">")
        await say(connected, "forbidden", b"1")
        await say(connected, "ok.x", b"2")
        assert heard.bodies == [b"2"]
        assert connected.up


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """A key and a certificate of `localhost` that nobody else has signed."""
    key, certificate = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return key, certificate


@pytest.mark.needs("openssl")
async def test_tls_with_a_certificate_that_is_trusted_and_one_that_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, certificate = make_certificate(tmp_path)
    async with server(tmp_path, f"tls {{ cert_file: '{certificate}', key_file: '{key}' }}") as running:
        with pytest.raises(Unavailable, match=re.compile("certificate", re.IGNORECASE)):
            await NatsLink.connect(running.url(scheme="tls"), "stranger", timeout_s=1.0)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        for scheme in ("tls", "nats"):  # a server that requires it gets it
            async with link(running.url(scheme=scheme)) as connected:
                heard = Heard(connected, "t")
                await say(connected, "t", b"x" * 300_000)
                assert heard.bodies == [b"x" * 300_000]


async def test_a_server_that_is_killed_is_left_for_another_and_subscriptions_go_along(tmp_path: Path) -> None:
    ups: list[str] = []
    async with server(tmp_path) as first, server(tmp_path) as second:
        async with link(f"{first.url()},{second.url()}") as connected:
            connected.attach(
                on_up=lambda: ups.append("up"), on_down=lambda: ups.append("down"), on_closed=lambda: ups.append("end")
            )
            heard = Heard(connected, "s")
            await say(connected, "s", b"1")
            first.process.send_signal(signal.SIGSTOP)  # or the link would be at the other one before it asks
            await eventually(lambda: _is_stopped(first.process.pid))  # all its threads: one may still answer
            unanswered = connected.ping()
            connected.write_now()
            await first.end()
            with pytest.raises(ConnectionError):
                await asyncio.shield(unanswered)
            async with asyncio.timeout(5):
                await connected.wait_up()
            await say(connected, "s", b"2")
            assert heard.bodies == [b"1", b"2"]
        assert ups == ["down", "up", "down", "end"]


async def test_a_server_that_comes_back_is_found_again(tmp_path: Path) -> None:
    async with server(tmp_path) as running, link(running.url()) as connected:
        heard = Heard(connected, "s")
        await running.end()
        await eventually(lambda: not connected.up, within_s=5)
        later = Heard(connected, "later")
        again = Server(tmp_path, port=running.port)
        await again.start()
        try:
            async with asyncio.timeout(10):
                await connected.wait_up()
            await say(connected, "s", b"1")
            await say(connected, "later", b"2")
        finally:
            await again.end()
        assert (heard.bodies, later.bodies) == ([b"1"], [b"2"])


async def test_a_server_that_says_nothing_any_more_is_given_up(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        proxy = TcpProxy(running.port)
        await proxy.start()
        async with link(proxy.url, ping_s=0.1) as connected:
            await say(connected, "x", b"y")
            proxy.black_hole()
            began = time.monotonic()
            await eventually(lambda: not connected.up, within_s=5)
            assert time.monotonic() - began > 0.2
            proxy.heal()
            async with asyncio.timeout(10):
                await connected.wait_up()
            await say(connected, "x", b"y")
        await proxy.stop()


async def test_a_server_that_stops_gently_is_left_when_it_closes(tmp_path: Path) -> None:
    duck = "lame_duck_duration: '30s'\nlame_duck_grace_period: '1s'"
    async with (
        server(tmp_path, duck) as first,
        server(tmp_path) as second,
        link(f"{first.url()},{second.url()}") as connected,
    ):
        heard = Heard(connected, "s")
        first.process.send_signal(signal.SIGUSR2)
        await eventually(lambda: connected.server.endswith(str(second.port)), within_s=15)
        await say(connected, "s", b"1")
        assert heard.bodies == [b"1"]


async def test_a_reader_that_was_too_slow_comes_back(tmp_path: Path) -> None:
    async with (
        server(tmp_path, "write_deadline: '50ms'\nmax_pending: 1048576") as running,
        link(running.url()) as slow,
        link(running.url()) as busy,
    ):
        heard = Heard(slow, "flood")
        downs: list[int] = []
        slow.attach(on_up=lambda: None, on_down=lambda: downs.append(1), on_closed=lambda: None)
        await say(slow, "x", b"")
        assert slow._session is not None
        reading = slow._session.transport
        reading.pause_reading()
        for _ in range(200):
            busy.write(b"PUB flood 100000\r\n" + b"f" * 100_000 + b"\r\n")
        async with asyncio.timeout(10):
            await asyncio.shield(busy.ping())
        reading.resume_reading()
        await eventually(lambda: bool(downs) and slow.up, within_s=10)
        before = len(heard.bodies)
        await say(busy, "flood", b"again")
        await eventually(lambda: heard.bodies[before:] == [b"again"], within_s=5)


async def test_close_writes_what_waits(tmp_path: Path) -> None:
    async with server(tmp_path) as running, link(running.url()) as other:
        heard = Heard(other, "last")
        await say(other, "x", b"")
        leaving = await NatsLink.connect(running.url(), "leaving")
        leaving.write(b"PUB last 3\r\nbye\r\n")
        await leaving.close()
        await eventually(lambda: heard.bodies == [b"bye"], within_s=5)
        with pytest.raises(ConnectionError):
            await leaving.wait_up()


async def answering(answer: bytes) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(answer)
        await writer.drain()
        await reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    return listening, listening.sockets[0].getsockname()[1]


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"INFO [1]\r\n", b"INFO {\r\n", b""])
async def test_something_else_than_a_server_is_named(answer: bytes) -> None:
    listening, port = await answering(answer)
    try:
        with pytest.raises(Unavailable, match="no NATS server answers"):
            await NatsLink.connect(f"nats://127.0.0.1:{port}", "lost", timeout_s=0.5)
    finally:
        listening.close()


@pytest.mark.parametrize("url", ["http://x", "nats://", "nats://h:99999", "nats://h:x"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidInput, match="is not the URL of a NATS server"):
        await NatsLink.connect(url, "lost")


def _is_stopped(pid: int) -> bool:
    states = [task.joinpath("stat").read_text().rpartition(") ")[2][0] for task in Path(f"/proc/{pid}/task").iterdir()]
    return all(state == "T" for state in states)
