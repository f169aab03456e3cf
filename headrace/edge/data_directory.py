"""One mesh's data directory: what lies where, who holds it, and how commands find the mesh that runs on it.

    lock             held (flock) by the `headrace up` that runs; its text is that process's id
    endpoints.json   addresses, written atomically; only true while the lock is held
    ports.json       ports of the last run, taken again where they are free
    logs/            one file a process; logs/instances/ one an instance
    broker/          store, configuration and log of the embedded nats-server
    cache/           bundles and environments, by digest
    credentials.key  keys of the credentials (mode 0600), unless others are given
    layout           number of this arrangement, and of what the broker's store holds

Sockets need short paths (108 bytes), so they live in a directory of their own under /tmp, private to the user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import msgspec

from headrace.model.errors import InvalidInput, NotFound, Unavailable, WrongState

DATA_VARIABLE = "HEADRACE_DATA"
MESH_VARIABLE = "HEADRACE_MESH"
"""Set, to the data directory, in the environment of every process of a mesh."""
DEFAULT_DATA = Path(".headrace")
LAYOUT = 1
"""Raised when an older Headrace could no longer read what this one writes."""
_LOCK_PATIENCE_S = 0.3
_SOCKET_ROOT = Path("/tmp")  # noqa: S108  owner and mode of what is made in it are checked


class Endpoints(msgspec.Struct, frozen=True):
    """Where the services of a running mesh are. `gateways` are HTTP addresses (`host:port`), the others gRPC
    targets, `nats` a URL. `pid` is that of `headrace up`; `processes` the present pid of each role."""

    api: str
    gateways: list[str]
    nats: str
    registry: str
    agent: str
    pid: int
    profile: str
    data: str = ""
    processes: dict[str, int] = {}
    # Addresses of all orchestrators; `api` is the first of them.
    apis: list[str] = []
    # HTTP addresses of /metrics, /healthz and /readyz, one for each orchestrator.
    metrics: list[str] = []
    # Collector that spans are sent to; empty for none.
    otlp: str = ""

    @property
    def any_api(self) -> str:
        """What a client is given, so that it finds an orchestrator while one is away: `a,b`."""
        return ",".join(self.apis) or self.api


@dataclass(frozen=True)
class DataDirectory:
    """Paths of one data directory; `path` is absolute."""

    path: Path

    @property
    def lock_file(self) -> Path:
        return self.path / "lock"

    @property
    def endpoints_file(self) -> Path:
        return self.path / "endpoints.json"

    @property
    def ports_file(self) -> Path:
        return self.path / "ports.json"

    @property
    def layout_file(self) -> Path:
        return self.path / "layout"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def instance_logs(self) -> Path:
        return self.logs / "instances"

    @property
    def broker(self) -> Path:
        return self.path / "broker"

    @property
    def cache(self) -> Path:
        return self.path / "cache"

    @property
    def credential_keys(self) -> Path:
        """Keys of the credentials, where nobody gives others."""
        return self.path / "credentials.key"

    @property
    def run(self) -> Path:
        """Directory of sockets: `/tmp/headrace-<uid>/<12 hex digits>`."""
        digest = sha256(str(self.path).encode()).hexdigest()[:12]
        return _SOCKET_ROOT / f"headrace-{os.getuid()}" / digest

    def create(self) -> None:
        """Makes what is missing; InvalidInput where that cannot be, or is not ours; WrongState where a newer Headrace
        has written it."""
        self.check_layout()
        for folder in (self.path, self.logs, self.instance_logs, self.broker, self.cache):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise unusable(self.path, error) from error
        if not self.layout_file.exists():
            try:
                write_atomically(self.layout_file, b"%d\n" % LAYOUT)
            except OSError as error:
                raise unusable(self.path, error) from error
        make_private(self.run.parent)
        make_private(self.run)

    def read_layout(self) -> int:
        """0 where there is none yet (or none that can be read)."""
        try:
            return int(self.layout_file.read_text())
        except (OSError, ValueError):
            return 0

    def check_layout(self) -> None:
        """WrongState where a newer Headrace has written here: it may hold what this one would misread."""
        found = self.read_layout()
        if found > LAYOUT:
            raise WrongState(
                f"data directory {self.path} was written by a newer Headrace (layout {found}, this one knows {LAYOUT})",
                reason="DATA_DIRECTORY_NEWER",
                next_step="Use that Headrace, or give another --data",
                metadata={"data": str(self.path), "layout": str(found)},
            )

    def write_endpoints(self, endpoints: Endpoints) -> None:
        write_atomically(self.endpoints_file, msgspec.json.format(msgspec.json.encode(endpoints)) + b"\n")

    def remove_endpoints(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.endpoints_file.unlink()

    def read_ports(self) -> dict[str, int]:
        """Ports of the last run by role; {} when unknown."""
        try:
            return msgspec.json.decode(self.ports_file.read_bytes(), type=dict[str, int])
        except (OSError, msgspec.MsgspecError):
            return {}

    def write_ports(self, ports: dict[str, int]) -> None:
        write_atomically(self.ports_file, msgspec.json.encode(ports))


class DataDirectoryLock:
    """The right to run a mesh on a data directory; released by `release` or by the process's end."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, directory: DataDirectory) -> DataDirectoryLock:
        """WrongState, naming the holder, when somebody else has it; InvalidInput where nothing can be written."""
        try:
            descriptor = os.open(directory.lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise unusable(directory.path, error) from error
        deadline = time.monotonic() + _LOCK_PATIENCE_S  # whoever only looks holds it for microseconds
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() < deadline:
                    time.sleep(0.01)
                    continue
                holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(descriptor)
                raise WrongState(
                    f"data directory {directory.path} is in use by pid {holder}",
                    reason="DATA_DIRECTORY_IN_USE",
                    next_step=f"Use that mesh, end it with `headrace down --data {directory.path}`, "
                    "or give another --data",
                ) from None
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        except OSError as error:
            os.close(descriptor)
            raise unusable(directory.path, error) from error
        return cls(descriptor)

    def release(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def locate(data: Path | None) -> DataDirectory:
    """The directory given, else $HEADRACE_DATA, else ./.headrace."""
    return DataDirectory((data or Path(os.environ.get(DATA_VARIABLE) or DEFAULT_DATA)).absolute())


def lock_holder(directory: DataDirectory) -> int:
    """The pid of the `headrace up` that runs on it; 0 if none does."""
    try:
        descriptor = os.open(directory.lock_file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        text = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        return int(text) if text.isdigit() else 0
    finally:
        os.close(descriptor)
    return 0


def api_of_this_machine(data: Path | None = None) -> str:
    """What a client of the mesh on a data directory is given; Unavailable where none runs there."""
    try:
        return read_endpoints(data).any_api
    except NotFound as error:
        raise Unavailable(error.message, reason=error.reason, next_step=error.next_step) from error


def read_endpoints(data: Path | None = None) -> Endpoints:
    """The addresses of the mesh that runs on a data directory; NotFound when none does."""
    directory = locate(data)
    option = "" if data is None else f" --data {data}"
    next_step = f"Start one with `headrace up{option}`, or name a mesh with --address HOST:PORT"
    try:
        endpoints = msgspec.json.decode(directory.endpoints_file.read_bytes(), type=Endpoints)
    except FileNotFoundError:
        starting = " is ready yet" if lock_holder(directory) else " runs"
        raise NotFound(
            f"no mesh{starting} on {directory.path}", reason="MESH_NOT_RUNNING", next_step=next_step
        ) from None
    except (OSError, msgspec.MsgspecError) as error:
        raise NotFound(
            f"{directory.endpoints_file} cannot be read: {error}", reason="MESH_NOT_RUNNING", next_step=next_step
        ) from error
    if not lock_holder(directory):
        raise NotFound(
            f"the mesh on {directory.path} does not run any more (its process {endpoints.pid} ended)",
            reason="MESH_NOT_RUNNING",
            next_step=next_step,
        )
    return endpoints


def write_atomically(file: Path, content: bytes) -> None:
    """Readers see the old content or the new, never a part. Only this user can read it (a URL may hold a password)."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        os.replace(temporary, file)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def make_private(folder: Path) -> None:
    """A directory that only this user can enter: made, or checked when it is there already."""
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise InvalidInput.at(
            "run directory",
            str(folder),
            "is not a directory that belongs to you alone",
            next_step="Remove it, or have its owner remove it",
        )


def unusable(folder: Path, error: OSError) -> InvalidInput:
    """A data directory in which nothing can be made or written."""
    return InvalidInput.at(
        "data",
        str(folder),
        f"cannot be used: {error.strerror}",
        next_step="Make room, or give --data a directory that you can write to",
        reason="DATA_DIRECTORY_UNUSABLE",
    )
