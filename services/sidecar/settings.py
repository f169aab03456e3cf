"""Settings of one sidecar: read once from the environment that the agent gives it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path

from headrace.model.attachments import LIMIT_VARIABLE, MAX_ATTACHMENT_BYTES, limit_of
from headrace.model.errors import InvalidInput
from headrace.model.names import instance_name
from services.sidecar.liveness import ANSWER_LIMIT_S
from services.sidecar.process_watch import MEBIBYTE, ProcessLimits

SIDECAR_VERSION = "0.1.0"

MEMORY_VARIABLE = "HEADRACE_COMPONENT_MEMORY_MB"
PROCESSES_VARIABLE = "HEADRACE_COMPONENT_PROCESSES"
DEFAULT_MEMORY_MB = 2048
DEFAULT_PROCESSES = 128
METRICS_VARIABLE = "HEADRACE_METRICS"
STREAM_VARIABLE = "HEADRACE_COMPONENT_STREAM"
OWN_STREAM, GRPC_STREAM = "http2", "grpc"


@dataclass(frozen=True, slots=True)
class Settings:
    """Values of the HEADRACE_* variables; paths are absolute."""

    nats_url: str
    registry: str
    cache_dir: Path
    run_dir: Path
    workspace: str
    flow: str
    deployment: int
    step: str
    replica: int
    plan_digest: str
    instance: str
    component_start_limit_s: float = 20.0
    """How long a component may take until it has opened its socket."""
    answer_limit_s: float = ANSWER_LIMIT_S
    """How long a component may leave a ping unanswered while calls run."""
    restart_delay_limit_s: float = 30.0
    """The longest back-off before a component that died is started again."""
    component_limits: ProcessLimits = field(default_factory=ProcessLimits)
    """What the component's processes may use."""
    component_stream: str = OWN_STREAM
    """What calls the component's `Process`: our own HTTP/2 framing, or gRPC's library."""
    attachment_limit: int = MAX_ATTACHMENT_BYTES
    """Bytes of the largest attachment."""
    metrics: str = ""
    """Where this instance serves /metrics and probes of its own (HOST:PORT); empty: nowhere, the leader tells of it."""

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Settings:
        """Reads the variables; InvalidInput names the first that is missing or wrong."""
        workspace = environ.get("HEADRACE_WORKSPACE") or "default"
        flow = _required(environ, "HEADRACE_FLOW")
        step = _required(environ, "HEADRACE_STEP")
        deployment = _number(environ, "HEADRACE_DEPLOYMENT")
        replica = _number(environ, "HEADRACE_REPLICA", "0")
        name = environ.get("HEADRACE_INSTANCE") or instance_name(workspace, flow, deployment, step, replica)
        return cls(
            nats_url=_required(environ, "HEADRACE_NATS_URL"),
            registry=environ.get("HEADRACE_REGISTRY", ""),
            cache_dir=Path(_required(environ, "HEADRACE_CACHE_DIR")).absolute(),
            run_dir=Path(_required(environ, "HEADRACE_RUN_DIR")).absolute(),
            workspace=workspace,
            flow=flow,
            deployment=deployment,
            step=step,
            replica=replica,
            plan_digest=_required(environ, "HEADRACE_PLAN_DIGEST"),
            instance=name,
            component_start_limit_s=_seconds(environ, "HEADRACE_COMPONENT_START_LIMIT_S", 20.0),
            answer_limit_s=_seconds(environ, "HEADRACE_ANSWER_LIMIT_S", ANSWER_LIMIT_S),
            restart_delay_limit_s=_seconds(environ, "HEADRACE_RESTART_DELAY_LIMIT_S", 30.0),
            component_limits=ProcessLimits(
                memory_bytes=_number(environ, MEMORY_VARIABLE, str(DEFAULT_MEMORY_MB)) * MEBIBYTE,
                processes=_number(environ, PROCESSES_VARIABLE, str(DEFAULT_PROCESSES)),
            ),
            component_stream=_one_of(environ, STREAM_VARIABLE, (OWN_STREAM, GRPC_STREAM)),
            attachment_limit=limit_of(environ.get(LIMIT_VARIABLE, "")),
            metrics=environ.get(METRICS_VARIABLE, ""),
        )

    @property
    def lifecycle_address(self) -> str:
        """gRPC target of the Lifecycle service; short, since a socket path has at most 107 bytes."""
        return f"unix:{self.run_dir / (_short(self.instance) + '.sock')}"

    def component_socket(self) -> Path:
        """The component's socket; one at a time belongs to an instance."""
        return self.run_dir / f"{_short(self.instance)}.c{os.getpid()}.sock"

    def deaths_file(self) -> Path:
        """Where one life of the sidecar tells the next that it came to no orderly end."""
        return self.run_dir / f"{_short(self.instance)}.lives"

    def remove_stale_sockets(self) -> None:
        """Sockets of components whose sidecar was killed."""
        for path in self.run_dir.glob(f"{_short(self.instance)}.c*.sock*"):
            path.unlink(missing_ok=True)


def _short(name: str) -> str:
    return blake2b(name.encode(), digest_size=6).hexdigest()


def _required(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "")
    if not value:
        raise InvalidInput.at(name, value, "is not set", next_step="The agent sets it; start sidecars through it")
    return value


def _seconds(environ: Mapping[str, str], name: str, default: float) -> float:
    value = environ.get(name, "")
    try:
        seconds = float(value) if value else default
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise InvalidInput.at(name, value, "is not a number of seconds, above 0, at most 3600")
    return seconds


def _one_of(environ: Mapping[str, str], name: str, known: tuple[str, ...]) -> str:
    """The first where nothing is said."""
    value = environ.get(name) or known[0]
    if value not in known:
        raise InvalidInput.at(name, value, f"is not one of {', '.join(known)}")
    return value


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    value = environ.get(name) or default
    if not value.isdigit():
        raise InvalidInput.at(name, value, "is not a whole number")
    return int(value)
