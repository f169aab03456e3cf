"""A PostgreSQL server of a test's own: Debian's programs, a cluster in a folder, a Unix socket, no port.

    with postgres_server() as server: ...; server.dsn

It refuses to run as root, so then it runs as the user `postgres`. Use with `@pytest.mark.needs("postgres")`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))
import real_tools

DATABASE = "postgres"
START_LIMIT_S = 30


@dataclass(frozen=True)
class PostgresServer:
    folder: Path
    programs: Path
    user: str

    @property
    def dsn(self) -> str:
        return f"postgresql:///{DATABASE}?host={self.folder}&user={self.user}"

    def rows(self, query: str) -> list[list[str]]:
        """What a query answers, as text."""
        command = [str(self.programs / "psql"), self.dsn, "-X", "-A", "-t", "-F", "\t", "-c", query]
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return [line.split("\t") for line in done.stdout.splitlines()]


@contextlib.contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A new, empty cluster; gone at the end, with everything in it."""
    program = real_tools.locate("postgres")
    assert program is not None
    programs = Path(program).resolve().parent
    # Short: a socket's path has at most 107 bytes. Not pytest's folder, into which another user may not look.
    folder = Path(tempfile.mkdtemp(prefix="hr-pg-", dir="/tmp"))
    as_user: dict[str, str] = {}
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres")
        as_user = {"user": "postgres"}
    server = PostgresServer(folder, programs, as_user.get("user", "") or os.environ.get("USER", "postgres"))
    data = folder / "data"

    def run(*command: str) -> None:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=START_LIMIT_S, env={"PATH": "/usr/bin:/bin"},
            **as_user,  # type: ignore[call-overload]
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    try:
        run(str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", server.user, "--no-sync")
        options = f"-c listen_addresses= -c unix_socket_directories={folder} -c shared_buffers=8MB"
        run(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", str(folder / "log"), "-o", options, "start")
        yield server
    finally:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            run(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)
