"""`headrace demo`: a mesh of its own, the example's flow, every order posted and checked, where the time went."""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.invocation import FAILED, print_error
from headrace.cli.up import Profile
from headrace.model.errors import HeadraceError, InvalidInput

if TYPE_CHECKING:
    from headrace.cli.demo_report import DemoResult


def demo(
    once: Annotated[bool, typer.Option("--once", help="End after the checks; status 1 if orders differ.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object; all else on standard error.")] = False,
    data: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Empty folder to use and keep; default a temporary one.")
    ] = None,
    profile: Annotated[Profile, typer.Option(help="Durability of the mesh.")] = Profile.durable,
    example: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder like examples/orders: flow, orders, what is expected.")
    ] = None,
    connections: Annotated[int, typer.Option(help="HTTP connections that post orders.", min=1, max=64)] = 4,
    rate: Annotated[
        float, typer.Option(help="Orders a second in all; 0 for as fast as they are answered.", min=0)
    ] = 100,
) -> None:
    """Start a fresh mesh, run the orders example on it, check every answer and effect, show every hop; then push,
    restart, roll back and kill -9 while orders keep flowing, and show which code answered; then correct an order that
    was given up and send it again."""
    from headrace.cli.demo_run import DemoRun
    from headrace.cli.mesh_plan import MeshOptions
    from headrace.cli.mesh_session import run_in_mesh

    out = sys.stderr if as_json else sys.stdout
    run = DemoRun(
        example=example,
        connections=connections,
        rate=rate,
        stay=not once,
        say=lambda line: print(line, file=out, flush=True),
        tell=_tell_json if as_json else _tell_text,
    )
    try:
        with _fresh_folder(data) as folder:
            status = run_in_mesh(MeshOptions(folder, profile=profile.value, otlp=jaeger_here()), run)
    except HeadraceError as error:
        print_error(error)
        raise typer.Exit(FAILED) from None
    raise typer.Exit(status)


def jaeger_here() -> str:
    """Collector of a Jaeger that runs on this machine's usual ports; empty without one, and where the environment says
    where traces go."""
    import os
    import socket

    from headrace.edge.otlp_target import DEFAULT_PORT, ENDPOINT_VARIABLE, JAEGER_PORT

    if os.environ.get(ENDPOINT_VARIABLE):
        return ""
    try:
        for port in (DEFAULT_PORT, JAEGER_PORT):
            socket.create_connection(("127.0.0.1", port), timeout=0.2).close()
    except OSError:
        return ""
    return f"http://127.0.0.1:{DEFAULT_PORT}"


def _tell_json(result: DemoResult, last: bool) -> None:
    from headrace.cli.demo_report import report_json

    if last:
        print(json.dumps(report_json(result), ensure_ascii=False), flush=True)


def _tell_text(result: DemoResult, last: bool) -> None:
    from headrace.cli.demo_report import pinning_text, report_text

    if result.letters is not None:
        print(flush=True)  # the act has told it all, line by line
        return
    print(f"\n{pinning_text(result.pinning) if result.pinning else report_text(result)}\n", flush=True)


@contextlib.contextmanager
def _fresh_folder(given: Path | None) -> Iterator[Path]:
    """A temporary folder that goes at the end, or the empty one given, which stays."""
    if given is None:
        folder = Path(tempfile.mkdtemp(prefix="headrace-demo-"))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    folder = given.absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InvalidInput.at(
            "data",
            str(given),
            "is not an empty folder",
            next_step="The demo counts every effect, so it starts afresh: name an empty folder, or none",
        )
    folder.mkdir(parents=True, exist_ok=True)
    yield folder
