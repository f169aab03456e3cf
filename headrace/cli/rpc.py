"""`headrace rpc`: any method of the API with JSON, in grpcurl's words, without grpcurl."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.invocation import (
    FAILED,
    UNREACHABLE,
    AddressOption,
    DataOption,
    find_address,
    print_error,
    print_json,
    print_usage,
)
from headrace.model.errors import HeadraceError, Unavailable

if TYPE_CHECKING:
    from headrace.cli.rpc_server import RpcServer

# grpcurl's: the status code of the call is added.
STATUS_BASE = 64
MOST_REQUEST_BYTES = 64 * 1024 * 1024


def rpc(
    method: Annotated[
        str, typer.Argument(metavar="METHOD", help="SERVICE/METHOD, METHOD alone where it is unique; list; describe.")
    ],
    request: Annotated[
        str, typer.Argument(metavar="[JSON|@|SYMBOL]", help="The request; @ reads it from standard input.")
    ] = "",
    header: Annotated[
        list[str] | None, typer.Option("--header", "-H", metavar="NAME:VALUE", help="Metadata; may repeat.")
    ] = None,
    max_time: Annotated[
        float, typer.Option("--max-time", metavar="SECONDS", min=0.0, help="Limit of the call; 0: none.")
    ] = 0.0,
    emit_defaults: Annotated[
        bool, typer.Option("--emit-defaults", help="Also print fields that have their default.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Lists and errors as JSON too (answers always are).")] = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Call a method of the API with JSON, as grpcurl does: unary, streams, errors with their details.

    `list [SERVICE]` and `describe [SYMBOL]` tell what there is. Methods and messages come from the server itself (gRPC
    reflection), so any gRPC server that has it can be asked: --address HOST:PORT or unix:PATH. Exit status: 64 and
    the status code of a call that failed (69: not found), as grpcurl's."""
    target = find_address(address, data)
    metadata = [_header(text) for text in header or []]
    import grpc

    from headrace.cli.rpc_server import RpcServer

    try:
        with RpcServer(target) as server:
            if method in ("list", "describe"):
                _tell(server, method, request, as_json)
                return
            _call(server, method, request, metadata, max_time, emit_defaults, as_json)
    except grpc.RpcError as error:  # of reflection: nobody there, or a server without it
        raise _unreachable(error, target) from None
    except HeadraceError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(UNREACHABLE if isinstance(error, Unavailable) else FAILED) from None


def _tell(server: RpcServer, verb: str, symbol: str, as_json: bool) -> None:
    if verb == "list":
        found = server.methods(symbol) if symbol else server.services()
        print_json({"methods" if symbol else "services": found}) if as_json else print("\n".join(found))
        return
    texts = {name: server.describe(name) for name in ([symbol] if symbol else server.services())}
    print_json(texts) if as_json else print("\n".join(texts.values()))


def _call(
    server: RpcServer,
    name: str,
    request: str,
    metadata: list[tuple[str, str]],
    max_time: float,
    emit_defaults: bool,
    as_json: bool,
) -> None:
    import grpc

    from headrace.cli.rpc_json import JsonWriter

    method = server.find_method(name)
    text = sys.stdin.read(MOST_REQUEST_BYTES) if request in ("@", "-") else request
    requests = server.parse_requests(method, text)
    writer = JsonWriter(server.new_message, defaults=emit_defaults)
    try:
        for answer in server.call(method, requests, metadata, max_time or None):
            print(writer.text(answer), flush=True)
    except grpc.RpcError as error:
        failed: Any = error
        print(_error_text(server, failed, as_json), file=sys.stderr)
        raise typer.Exit(STATUS_BASE + failed.code().value[0]) from None


def _error_text(server: RpcServer, error: Any, as_json: bool) -> str:
    """The status with its details, as grpcurl prints it; with --json as its `-format-error` does."""
    from google.rpc import status_pb2

    from headrace.cli.rpc_json import JsonWriter, as_text

    writer = JsonWriter(server.new_message)
    trailers = dict(error.trailing_metadata() or ())
    status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))
    details = [writer.facts(detail) for detail in status.details]
    if as_json:
        facts = {"code": error.code().value[0], "message": error.details() or ""}
        return as_text(facts | ({"details": details} if details else {}))
    code = "".join(word.capitalize() for word in error.code().name.split("_"))
    lines = ["ERROR:", f"  Code: {code}", f"  Message: {error.details() or ''}"]
    if details:
        lines.append("  Details:")
    for number, detail in enumerate(details, start=1):
        first, *rest = as_text(detail).split("\n")
        lines.append(f"  {number})\t{first}")
        lines += [f"    \t{line}" for line in rest]
    return "\n".join(lines)


def _unreachable(error: Any, target: str) -> HeadraceError:
    if error.code().name == "UNIMPLEMENTED":
        return HeadraceError(f"{target} has no server reflection", reason="NO_REFLECTION")
    return Unavailable(
        f"no server answers at {target}",
        reason="MESH_UNREACHABLE",
        next_step="Start one with `headrace up`, or name it with --address HOST:PORT",
        metadata={"cause": error.details() or ""},
    )


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        print_usage(f"--header {text}: write NAME:VALUE")
    return name.strip().lower(), value.strip()
