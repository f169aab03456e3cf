"""The interpreter a component runs on: the mesh's own, or an environment built once per lock file.

    <cache>/environments/<hash of lock and interpreter>/    a virtual environment
    <cache>/environments/<hash>.lock                        who builds it

A bundle without requirements needs no build. With a lock, uv installs exactly what the lock's hashes say and
compiles it; the mesh's own packages are appended after it, so that `headrace.sdk` is importable and whatever
the component pinned wins.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections import deque
from hashlib import sha256
from pathlib import Path

from headrace.model.errors import HeadraceError, InvalidInput, Unavailable
from services.sidecar.file_lock import locked

LOCK_FILE = "requirements.lock"
BUILD_LIMIT_S = 120.0
_TAIL_LINES = 12
_PASSED_ON = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "XDG_CACHE_HOME",
              "XDG_CONFIG_HOME", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy",
              "all_proxy", "no_proxy")  # fmt: skip


class EnvironmentCache:
    """Built environments under one cache directory."""

    def __init__(self, cache_dir: Path) -> None:
        self._folder = cache_dir / "environments"

    def find(self, bundle: Path) -> Path | None:
        """The interpreter for a bundle when nothing has to be built, else None."""
        lock = _read_lock(bundle)
        if lock is None:
            return Path(sys.executable)
        python = self._target(lock) / "bin" / "python"
        return python if python.exists() else None

    async def build(self, bundle: Path) -> Path:
        """The interpreter for a bundle, its environment built if needed; InvalidInput or Unavailable with
        uv's last lines when it cannot be."""
        found = self.find(bundle)
        if found is not None:
            return found
        lock = _read_lock(bundle)
        assert lock is not None
        target = self._target(lock)
        async with locked(target.with_suffix(".lock"), BUILD_LIMIT_S):
            python = target / "bin" / "python"
            if not python.exists():
                await self._build(bundle / LOCK_FILE, target)
        return python

    async def _build(self, lock_file: Path, target: Path) -> None:
        uv = _find_uv()
        partial = target.with_suffix(f".part{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        try:
            async with asyncio.timeout(BUILD_LIMIT_S):
                base = ["--no-progress", "--color", "never"]
                await _run([uv, "venv", *base, "--relocatable", "--python", sys.executable, str(partial)])
                python = str(partial / "bin" / "python")
                sync = [uv, "pip", "sync", *base, "--python", python, "--require-hashes", "--compile-bytecode"]
                await _run([*sync, str(lock_file)])
            _append_mesh_packages(partial)
            os.rename(partial, target)
        except TimeoutError as error:
            raise Unavailable(
                f"the environment was not built within {BUILD_LIMIT_S:g} s",
                reason="ENVIRONMENT_BUILD_TIMEOUT",
                next_step="Check that the package index answers; fewer or smaller requirements build faster",
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _target(self, lock: bytes) -> Path:
        interpreter = f"{sys.implementation.cache_tag}:{sys.base_prefix}:{sys.version}:{mesh_packages()}"
        return self._folder / sha256(interpreter.encode() + b"\0" + lock).hexdigest()[:32]


def mesh_packages() -> Path:
    """The site-packages that hold the mesh."""
    import sysconfig

    return Path(sysconfig.get_path("purelib"))


def _read_lock(bundle: Path) -> bytes | None:
    try:
        lock = (bundle / LOCK_FILE).read_bytes()
    except FileNotFoundError:
        return None
    wanted = [line for line in lock.splitlines() if line.strip() and not line.lstrip().startswith(b"#")]
    return lock if wanted else None


def _append_mesh_packages(environment: Path) -> None:
    packages = next(environment.glob("lib/python*/site-packages"))
    # addsitedir and not a plain path: an editable install of the mesh is itself a .pth file in there.
    line = f"import site; site.addsitedir({str(mesh_packages())!r})\n"
    (packages / "_headrace_mesh.pth").write_text(line)


def _find_uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise Unavailable("uv is not installed", reason="UV_MISSING", next_step="Install the wheel uv")
    return found


async def _run(command: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name in _PASSED_ON or name.startswith("UV_")}
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=environment,
        start_new_session=True,
        limit=1 << 20,
    )
    assert process.stdout is not None
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    try:
        async for line in process.stdout:
            tail.append(line.decode(errors="replace").rstrip())
        status = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if status != 0:
        raise _build_failed(command, status, list(tail))


def _build_failed(command: list[str], status: int, tail: list[str]) -> HeadraceError:
    return InvalidInput(
        f"{' '.join(command[1:3])} ended with status {status}: " + " | ".join(line for line in tail if line),
        reason="ENVIRONMENT_BUILD_FAILED",
        next_step="Correct the requirements, push the component again and publish",
    )
