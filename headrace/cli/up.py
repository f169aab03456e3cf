"""`headrace up`: a whole mesh on this machine, in the foreground."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from headrace.cli.mesh import Mesh
    from headrace.edge.data_directory import Endpoints


CTRL_C = "Ctrl-C ends it; the data stays"


class Profile(StrEnum):
    durable = "durable"
    fast = "fast"


Replicas = Annotated[
    int, typer.Option(metavar="N", help="Servers of a cluster that keep each message: 1, 3 or 5; 0: 3 on a cluster.")
]
Nats = Annotated[str, typer.Option(metavar="URL", help="Use this NATS server, or cluster (URL,URL,URL), instead.")]
NatsServer = Annotated[
    str | None, typer.Option(metavar="PATH", help="Binary to run; default: the one that came with Headrace.")
]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return when it is up; `headrace down` ends it.")]
Otlp = Annotated[
    str,
    typer.Option(
        metavar="URL",
        help="OTLP collector (gRPC) for traces: http://127.0.0.1:4317. Default: $OTEL_EXPORTER_OTLP_ENDPOINT.",
    ),
]
MetricsPort = Annotated[int, typer.Option(metavar="PORT", help="Of the metrics, on loopback; 0: last one, or free.")]
AdminPort = Annotated[
    int, typer.Option(metavar="PORT", help="Of the orchestrators' channelz, on loopback; 0: none is served.")
]
CredentialKeys = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Keys of the credentials; default $HEADRACE_CREDENTIAL_KEY_FILE or DIR's own."),
]
NatsMonitor = Annotated[
    str, typer.Option(metavar="URL", help="Monitoring of the servers of --nats (URL,URL), for the metrics.")
]


def up(
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Data directory; default $HEADRACE_DATA or ./.headrace.")
    ] = None,
    profile: Annotated[
        Profile,
        typer.Option(help="durable: on disk before it is acknowledged; fast: synced every 2 minutes."),
    ] = Profile.durable,
    nats: Nats = "",
    nats_server: NatsServer = None,
    host: Annotated[str, typer.Option(help="Address that API and gateways listen on.")] = "127.0.0.1",
    api_port: Annotated[int, typer.Option(metavar="PORT", help="Of the gRPC API; 0: last one, or free.")] = 0,
    http_port: Annotated[int, typer.Option(metavar="PORT", help="Of the first gateway; 0: last one, or free.")] = 0,
    gateways: Annotated[int, typer.Option(metavar="N", help="Gateways; they take ports in a row.")] = 1,
    orchestrators: Annotated[
        int, typer.Option(metavar="N", help="Orchestrators: one leads, the others stand by; ports in a row.")
    ] = 1,
    replicas: Replicas = 0,
    metrics_port: MetricsPort = 0,
    admin_port: AdminPort = 0,
    nats_monitor: NatsMonitor = "",
    credential_keys: CredentialKeys = None,
    workspace: Annotated[str, typer.Option(metavar="NAME", help="Workspace of this mesh.")] = "default",
    log_level: Annotated[str, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    otlp: Otlp = "",
    detach: Detach = False,
    as_json: Annotated[bool, typer.Option("--json", help="When it is up: its addresses as one JSON object.")] = False,
) -> None:
    """Run a mesh: broker, registry, orchestrator, agent, gateway. Ctrl-C ends it in order; its data stays."""
    from headrace.cli.mesh_plan import MeshOptions
    from headrace.cli.mesh_session import run_in_mesh
    from headrace.edge.data_directory import locate

    options = MeshOptions(
        data=locate(data).path,
        profile=profile.value,
        nats=nats,
        nats_server=nats_server,
        host=host,
        api_port=api_port,
        http_port=http_port,
        gateways=gateways,
        orchestrators=orchestrators,
        replicas=replicas,
        metrics_port=metrics_port,
        admin_port=admin_port,
        nats_monitor=nats_monitor,
        workspace=workspace,
        log_level=log_level,
        otlp=otlp,
        credential_keys=credential_keys,
    )
    if detach:
        from headrace.cli.detached_mesh import start_detached

        print(start_detached(options, as_json=as_json))
        return

    async def stay_up(mesh: Mesh, stopping: asyncio.Event) -> int:
        from headrace.edge.readiness import report_ready

        print(endpoints_json(mesh.endpoints) if as_json else summary(mesh), flush=True)
        report_ready({"data": str(mesh.directory.path), "api": mesh.endpoints.api})
        await stopping.wait()
        if not as_json:
            print("stopping", flush=True)
        return 0

    raise typer.Exit(run_in_mesh(options, stay_up))


def endpoints_json(endpoints: Endpoints) -> str:
    """Addresses of a mesh as one JSON object; a password in the broker's URL stays out."""
    import msgspec

    from headrace.model.broker_url import without_password

    facts = msgspec.structs.replace(endpoints, nats=without_password(endpoints.nats))
    return msgspec.json.encode(facts).decode()


def summary(mesh: Mesh) -> str:
    """What runs where, and what to type next."""
    from headrace.cli.tables import table
    from headrace.edge.data_directory import DEFAULT_DATA, locate
    from headrace.model.broker_url import without_password

    ends = mesh.endpoints
    if mesh.options.nats:
        broker = (
            f"{without_password(ends.nats)} (yours, {mesh.broker_version}; its own settings decide what is durable)"
        )
        profile = ends.profile
    else:
        broker = f"{ends.nats} (nats-server {mesh.broker_version})"
        kept = "an acknowledged message is on disk" if ends.profile == "durable" else "synced every 2 minutes"
        profile = f"{ends.profile}: {kept}"
    rows: list[tuple[str, str]] = [
        *[("API (gRPC)", address) for address in ends.apis],
        *[("gateway (HTTP)", f"http://{address}/hook/<flow>") for address in ends.gateways],
        *[("metrics (HTTP)", f"http://{address}/metrics") for address in ends.metrics],
        ("broker", broker),
        ("profile", profile),
        *([("traces", f"{ends.otlp} (OTLP)")] if ends.otlp else []),
        ("data", ends.data),
    ]
    option = "" if mesh.directory == locate(DEFAULT_DATA) else f" --data {ends.data}"
    return "\n".join(
        [
            f"headrace is up ({mesh.start_s:.1f} s)",
            table(("", ""), rows, indent="  ").partition("\n")[2],
            "",
            f"  headrace status{option}",
            f"  headrace flow apply FLOW.yaml{option}",
            f"  grpcurl -plaintext {ends.api} list",
            f"  {CTRL_C}",
            *_warnings(mesh.options.host),
        ]
    )


def _warnings(host: str) -> list[str]:
    if host in ("localhost", "::1") or host.startswith("127."):
        return []
    return [f"  Beware: API and gateways listen on {host}, without authentication"]
