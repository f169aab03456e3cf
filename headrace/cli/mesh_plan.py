"""Which processes a mesh consists of, on which ports, started how and stopped in which order."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.edge.broker_process import free_port, port_is_free
from headrace.edge.child_process import Command, own_module
from headrace.edge.data_directory import MESH_VARIABLE, DataDirectory
from headrace.edge.key_ring import FILE_VARIABLE, KEYS_VARIABLE
from headrace.edge.otlp_target import ENDPOINT_VARIABLE, read_target
from headrace.edge.replication import ALLOWED, VARIABLE
from headrace.model.errors import InvalidInput
from headrace.model.names import check_name

BROKER = "broker"
REGISTRY = "registry"
ORCHESTRATOR = "orchestrator"
AGENT = "agent"
GATEWAY = "gateway"
METRICS = "metrics"
BROKER_MONITOR = "broker-monitor"
GATEWAY_LIMIT = 16
ORCHESTRATOR_LIMIT = 4
LOOPBACK = "127.0.0.1"

# Who is asked to stop after whom, and how long each may take (seconds).
STOP_ORDER: tuple[tuple[str, float], ...] = (
    (GATEWAY, 1.5),
    (ORCHESTRATOR, 1.0),
    (AGENT, 3.0),
    (REGISTRY, 1.0),
    (BROKER, 1.5),
)


@dataclass(frozen=True)
class MeshOptions:
    """What a person may choose. Ports 0: those of the last run on this data directory, else free ones.

    `nats` is the URL of a server to use instead of an embedded one, `nats_server` the path of its binary.
    `host` is where API and gateways listen; the rest never leaves loopback. Gateways take `http_port` and the
    ports after it. `otlp`: where telemetry goes; empty leaves it to OTEL_EXPORTER_OTLP_* in the environment.
    `credential_keys`: key file of the credentials; None: what the environment names, else one in the data directory.
    """

    data: Path
    profile: str = "durable"
    nats: str = ""
    nats_monitor: str = ""
    nats_server: str | None = None
    host: str = "127.0.0.1"
    api_port: int = 0
    http_port: int = 0
    gateways: int = 1
    orchestrators: int = 1
    replicas: int = 0
    metrics_port: int = 0
    admin_port: int = 0
    workspace: str = "default"
    log_level: str = "info"
    otlp: str = ""
    credential_keys: Path | None = None

    @property
    def shown_profile(self) -> str:
        """The profile as people are told it: of a server that is not ours it is only assumed."""
        return f"{self.profile} (assumed)" if self.nats else self.profile

    def roles(self) -> list[str]:
        """All processes but the broker, in the order of starting."""
        return [REGISTRY, *self.orchestrator_roles(), AGENT, *self.gateway_roles()]

    def orchestrator_roles(self) -> list[str]:
        """`orchestrator`, `orchestrator-2`, ...: one leads, the others stand by."""
        return numbered(ORCHESTRATOR, self.orchestrators)

    def metrics_roles(self) -> list[str]:
        """The metrics ports of the orchestrators, in their order: `metrics`, `metrics-2`, ..."""
        return numbered(METRICS, self.orchestrators)

    def gateway_roles(self) -> list[str]:
        """`gateway`, `gateway-2`, ..."""
        return numbered(GATEWAY, self.gateways)


def numbered(kind: str, count: int) -> list[str]:
    """`kind`, `kind-2`, `kind-3`, ..."""
    return [kind if number == 1 else f"{kind}-{number}" for number in range(1, count + 1)]


def check_options(options: MeshOptions) -> None:
    """InvalidInput for what can be known to be wrong before anything is started."""
    check_name("workspace", options.workspace)
    if not 1 <= options.gateways <= GATEWAY_LIMIT:
        raise InvalidInput.at("gateways", options.gateways, f"is not between 1 and {GATEWAY_LIMIT}")
    if not 1 <= options.orchestrators <= ORCHESTRATOR_LIMIT:
        raise InvalidInput.at("orchestrators", options.orchestrators, f"is not between 1 and {ORCHESTRATOR_LIMIT}")
    if options.replicas not in (0, *ALLOWED):
        raise InvalidInput.at("replicas", options.replicas, "is not 1, 3 or 5 (or 0: 3 on a cluster)")
    if options.otlp:
        read_target({**os.environ, ENDPOINT_VARIABLE: options.otlp})
    if options.profile not in ("durable", "fast"):
        raise InvalidInput.at("profile", options.profile, "is not a profile", next_step="Use durable or fast")
    for field, port, count in (
        ("api-port", options.api_port, options.orchestrators),
        ("http-port", options.http_port, options.gateways),
        ("metrics-port", options.metrics_port, options.orchestrators),
        ("admin-port", options.admin_port, options.orchestrators),
    ):
        if not 0 <= port <= 65535 - count:
            raise InvalidInput.at(field, port, "is not a port", next_step="Use 1 to 65535, or 0 for a free one")


def choose_ports(options: MeshOptions, last: Mapping[str, int]) -> dict[str, int]:
    """A port for each role, and for what is watched. InvalidInput when one that a person asked for is taken."""
    asked: dict[str, tuple[str, int]] = {}
    for offset, role in enumerate(options.orchestrator_roles()):
        asked[role] = ("api-port", options.api_port + offset if options.api_port else 0)
    for offset, role in enumerate(options.gateway_roles()):
        asked[role] = ("http-port", options.http_port + offset if options.http_port else 0)
    for offset, role in enumerate(options.metrics_roles()):
        asked[role] = ("metrics-port", options.metrics_port + offset if options.metrics_port else 0)
    chosen: dict[str, int] = {}
    for role in [BROKER, BROKER_MONITOR, *options.roles(), *options.metrics_roles()]:
        field, port = asked.get(role, (role, 0))
        host = listening_host(role, options)
        if port and not port_is_free(host, port):
            raise InvalidInput.at(
                field,
                port,
                f"is taken on {host}",
                next_step=f"Choose another --{field}, or 0 for a free one",
                reason="PORT_TAKEN",
            )
        if not port:
            port = last.get(role, 0)
            if not port or port in chosen.values() or not port_is_free(host, port):
                port = free_port(host)
                while port in chosen.values():
                    port = free_port(host)
        chosen[role] = port
    return chosen


def listening_host(role: str, options: MeshOptions) -> str:
    """Broker, registry and agent have no authentication and are for this machine alone."""
    return options.host if role.partition("-")[0] in (ORCHESTRATOR, GATEWAY) else LOOPBACK


def reachable(host: str) -> str:
    """The host that processes of this machine use for a listening address."""
    return {"0.0.0.0": LOOPBACK, "": LOOPBACK, "::": "::1"}.get(host, host)  # noqa: S104


def address(host: str, port: int) -> str:
    """`host:port`, with the brackets that IPv6 needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def mesh_environment(directory: DataDirectory) -> dict[str, str | None]:
    """By this every process of the mesh is known, however it was started."""
    return {MESH_VARIABLE: str(directory.path)}


def replication(options: MeshOptions) -> dict[str, str | None]:
    """Services decide by themselves how many copies there are, unless a person does."""
    return {VARIABLE: str(options.replicas)} if options.replicas else {}


def broker_monitors(options: MeshOptions, ports: Mapping[str, int]) -> list[str]:
    """Monitoring addresses of the broker's servers: of the embedded one, or those that a person gave."""
    if options.nats:
        return [url for url in options.nats_monitor.split(",") if url]
    return [f"http://{address(LOOPBACK, ports[BROKER_MONITOR])}"]


def telemetry(options: MeshOptions) -> dict[str, str | None]:
    """Services, and instances through their agent, find the collector in their environment: what stands there besides
    (headers, which are secrets) is handed on by itself and never on a command line."""
    return {ENDPOINT_VARIABLE: options.otlp} if options.otlp else {}


def collector(options: MeshOptions, environ: Mapping[str, str]) -> str:
    """URL of the collector that spans go to, without secrets; "" for none, also where the environment makes no sense:
    services say so in their logs, and run without."""
    try:
        target = read_target({**environ, **({ENDPOINT_VARIABLE: options.otlp} if options.otlp else {})})
    except InvalidInput:
        return ""
    return target.url if target is not None else ""


def credential_keys(
    role: str, options: MeshOptions, directory: DataDirectory, environ: Mapping[str, str]
) -> dict[str, str | None]:
    """Who seals credentials (orchestrators), and who has instances that open them (the agent), get the keys; nobody
    else does, also where they stand in the environment of `headrace up`."""
    if role.partition("-")[0] not in (ORCHESTRATOR, AGENT):
        return {FILE_VARIABLE: None, KEYS_VARIABLE: None}
    file = key_file(options, directory, environ)
    return {FILE_VARIABLE: str(file)} if file is not None else {}


def key_file(options: MeshOptions, directory: DataDirectory, environ: Mapping[str, str]) -> Path | None:
    """The key file of this mesh; None where keys stand in the environment."""
    if options.credential_keys is not None:
        return options.credential_keys.absolute()
    if environ.get(FILE_VARIABLE):
        return Path(environ[FILE_VARIABLE]).absolute()
    return None if environ.get(KEYS_VARIABLE) else directory.credential_keys


def service_command(
    role: str, options: MeshOptions, directory: DataDirectory, nats_url: str, ports: Mapping[str, int]
) -> Command:
    """How to run one service."""
    kind = role.partition("-")[0]
    listen = address(listening_host(role, options), ports[role])
    arguments = ["--nats", nats_url, "--listen", listen, "--log-level", options.log_level]
    if kind in (ORCHESTRATOR, AGENT):
        arguments += ["--registry", address(LOOPBACK, ports[REGISTRY])]
    if kind == ORCHESTRATOR:
        arguments += ["--agent", address(LOOPBACK, ports[AGENT]), "--profile", options.shown_profile]
        arguments += ["--name", role, "--advertise", address(reachable(options.host), ports[role])]
        number = options.orchestrator_roles().index(role)
        arguments += ["--metrics", address(LOOPBACK, ports[options.metrics_roles()[number]])]
        if options.admin_port:
            arguments += ["--admin", address(LOOPBACK, options.admin_port + number)]
        for monitor in broker_monitors(options, ports):
            arguments += ["--broker-monitor", monitor]
    if kind == AGENT:
        arguments += ["--cache", str(directory.cache), "--run", str(directory.run)]
        arguments += ["--logs", str(directory.instance_logs)]
    if kind == GATEWAY:
        arguments += ["--grace", "1"]
    if options.workspace != "default":
        arguments += ["--workspace", options.workspace]
    return Command(
        own_module(f"services.{kind}", *arguments),
        mesh_environment(directory)
        | replication(options)
        | telemetry(options)
        | credential_keys(role, options, directory, os.environ),
        log_file=directory.logs / f"{role}.log",
    )
