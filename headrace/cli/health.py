"""`headrace health`: one question, one word, an exit status: for people, scripts and a container's HEALTHCHECK."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from headrace.cli.invocation import FAILED, UNREACHABLE, DataOption, find_address, print_error, print_json
from headrace.model.errors import HeadraceError, Unavailable

SERVING = "SERVING"
CALL_LIMIT_S = 3.0
PAUSE_S = 0.2


def health(
    name: Annotated[
        str, typer.Argument(metavar="[FLOW|SERVICE]", help="A flow, or a gRPC service; default: the whole process.")
    ] = "",
    address: Annotated[
        str | None,
        typer.Option(
            "--address", metavar="ADDR", envvar="HEADRACE_ADDRESS", help="HOST:PORT or unix:PATH of any gRPC process."
        ),
    ] = None,
    data: DataOption = None,
    wait: Annotated[float, typer.Option(metavar="SECONDS", help="Ask until it serves, at most so long.")] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Ask whether the mesh, a flow, or one process serves; exits with 0 only if it does."""
    service = name if not name or "." in name or "/" in name else f"flows/{name}"
    until = time.monotonic() + wait
    status = ""
    while status != SERVING:
        try:
            status = _ask(find_address(address, data), service)
            problem = None
        except HeadraceError as error:
            problem = error
        if time.monotonic() + PAUSE_S >= until:
            break
        if status != SERVING:
            time.sleep(PAUSE_S)
    if problem is not None:
        print_error(problem, as_json=as_json)
        unreachable = isinstance(problem, Unavailable) or problem.reason == "MESH_NOT_RUNNING"
        raise typer.Exit(UNREACHABLE if unreachable else FAILED)
    if as_json:
        print_json({"name": service, "status": status})
    else:
        print(status)
    raise typer.Exit(0 if status == SERVING else FAILED)


def _ask(address: str, service: str) -> str:
    """Of several addresses (`a,b`) whichever answers first."""
    import headrace.edge.grpc_environment  # noqa: F401  isort: skip  (before grpc)
    import grpc

    from headrace.client.errors import error_of_call

    for target in address.split(","):
        try:
            return _ask_once(target, service)
        except grpc.RpcError as error:
            problem = error_of_call(error, address)  # type: ignore[arg-type]
    raise problem


def _ask_once(target: str, service: str) -> str:
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=CALL_LIMIT_S)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))
