"""The data directory: who holds it, what readers see, whose run directory it is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from headrace.edge.broker_greeting import check_broker
from headrace.edge.broker_process import BrokerProcess, find_nats_server, free_port
from headrace.edge.data_directory import (
    DataDirectory,
    DataDirectoryLock,
    Endpoints,
    locate,
    lock_holder,
    make_private,
    read_endpoints,
    write_atomically,
)
from headrace.edge.nats_connection import connect_nats
from headrace.model.errors import InvalidInput, NotFound, Unavailable, WrongState
from tests.support.eventually import eventually

ENDPOINTS = Endpoints("127.0.0.1:1", ["127.0.0.1:2"], "nats://127.0.0.1:3", "127.0.0.1:4", "127.0.0.1:5", 6, "fast")


def test_it_has_one_holder_at_a_time(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    assert lock_holder(directory) == 0
    lock = DataDirectoryLock.take(directory)
    assert lock_holder(directory) == os.getpid()
    with pytest.raises(WrongState, match=f"in use by pid {os.getpid()}"):
        DataDirectoryLock.take(directory)
    lock.release()
    assert lock_holder(directory) == 0
    DataDirectoryLock.take(directory).release()


def test_the_lock_ends_with_its_process_and_is_not_inherited(tmp_path: Path) -> None:
    code = (
        "import subprocess, sys; from pathlib import Path\n"
        "from headrace.edge.data_directory import DataDirectory, DataDirectoryLock\n"
        "DataDirectoryLock.take(DataDirectory(Path(sys.argv[1])))\n"
        "child = subprocess.Popen(['sleep', '60'], stdout=-3, stderr=-3, close_fds=False)\n"
        "print(child.pid, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=20, check=True
    )
    try:
        assert lock_holder(DataDirectory(tmp_path)) == 0
    finally:
        os.kill(int(done.stdout), 9)


def test_endpoints_count_only_while_the_mesh_runs(tmp_path: Path) -> None:
    directory = locate(tmp_path)
    with pytest.raises(NotFound, match="no mesh runs on"):
        read_endpoints(tmp_path)
    lock = DataDirectoryLock.take(directory)
    with pytest.raises(NotFound, match="no mesh is ready yet on"):
        read_endpoints(tmp_path)
    directory.write_endpoints(ENDPOINTS)
    assert read_endpoints(tmp_path) == ENDPOINTS
    assert directory.endpoints_file.stat().st_mode & 0o777 == 0o600
    lock.release()
    with pytest.raises(NotFound, match="does not run any more"):
        read_endpoints(tmp_path)


def test_the_default_is_the_variable_and_then_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HEADRACE_DATA", raising=False)
    assert locate(None).path == tmp_path / ".headrace"
    monkeypatch.setenv("HEADRACE_DATA", "/elsewhere")
    assert locate(None).path == Path("/elsewhere")
    assert locate(Path("given")).path == tmp_path / "given"


def test_readers_never_see_half_a_file(tmp_path: Path) -> None:
    file = tmp_path / "endpoints.json"
    contents = [json.dumps({"text": letter * 100_000}).encode() for letter in "ab"]
    write_atomically(file, contents[0])
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            for content in contents:
                write_atomically(file, content)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert all(file.read_bytes() in contents for _ in range(300))
    finally:
        stop.set()
        writer.join(10)
    assert list(tmp_path.iterdir()) == [file]


def test_the_run_directory_is_private_and_its_path_short(tmp_path: Path) -> None:
    assert len(str(locate(tmp_path / ("x" * 200)).run)) < 50
    assert locate(tmp_path / "a").run != locate(tmp_path / "b").run
    make_private(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    make_private(tmp_path / "new")
    (tmp_path / "link").symlink_to(tmp_path / "new")
    (tmp_path / "open").mkdir(mode=0o755)
    (tmp_path / "file").touch()
    for name in ("link", "open", "file"):
        with pytest.raises(InvalidInput, match="belongs to you alone"):
            make_private(tmp_path / name)


async def test_a_broker_is_known_by_its_greeting(broker: BrokerProcess) -> None:
    assert await check_broker(broker.url) == broker.version
    nobody = f"nats://127.0.0.1:{free_port()}"
    assert await check_broker(f"{nobody},{broker.url}") == broker.version
    with pytest.raises(Unavailable, match="no NATS server answers"):
        await check_broker(nobody)
    with pytest.raises(Unavailable) as refused:
        await check_broker(nobody.replace("//", "//ann:secret@"))
    assert "secret" not in str(refused.value)


async def test_wrong_credentials_are_refused_and_no_password_is_shown(tmp_path: Path) -> None:
    settings = tmp_path / "nats.conf"
    settings.write_text(
        f'port: {free_port()}\nhost: 127.0.0.1\njetstream {{ store_dir: "{tmp_path}/js" }}\n'
        "authorization { user: ann, password: right-word }\n"
    )
    port = settings.read_text().split()[1]
    server = await asyncio.create_subprocess_exec(find_nats_server(), "-c", str(settings), stdout=-3, stderr=-3)
    try:
        right, wrong = (f"nats://ann:{word}@127.0.0.1:{port}" for word in ("right-word", "wrong-word"))

        async def served() -> bool:
            with contextlib.suppress(Unavailable):
                return bool(await check_broker(right))
            return False

        await eventually(served)
        with pytest.raises(InvalidInput, match="does not let us in") as refused:
            await check_broker(wrong)
        assert refused.value.reason == "BROKER_CREDENTIALS"
        with pytest.raises(Unavailable) as unreached:
            await connect_nats(wrong, "test", timeout_s=0.5)
        for error in (refused.value, unreached.value):
            assert "wrong-word" not in f"{error} {error.violations} {error.__cause__!r}"
        assert "ann" not in str(unreached.value)
    finally:
        server.terminate()
        await server.wait()


@pytest.mark.parametrize(
    ("greeting", "problem"),
    [
        (b'INFO {"version": "2.9.10", "jetstream": true}\r\n', "older than 2.15"),
        (b'INFO {"version": "2.15.1"}\r\n', "has no JetStream"),
        (b"SSH-2.0-OpenSSH_9\r\n", "something else than a NATS server"),
        (b"", "something else than a NATS server"),
    ],
)
async def test_a_server_that_will_not_do_is_refused(greeting: bytes, problem: str) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        writer.close()

    server = await asyncio.start_server(greet, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((InvalidInput, Unavailable), match=problem):
            await check_broker(f"nats://127.0.0.1:{port}")
