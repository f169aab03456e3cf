"""`headrace demo`: a mesh of its own, the example's flow, every order posted and checked, where the time went."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from headrace.cli.invocation import FAILED, INTERRUPTED, print_error
from headrace.model.errors import HeadraceError


def demo(
    once: Annotated[
        bool, typer.Option("--once", help="Stop after the checks: status 0, or 1 if orders differ.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output; the rest on standard error.")
    ] = False,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Empty folder to use and keep; default a temporary one."),
    ] = None,
    profile: Annotated[str, typer.Option(help="Durability: durable or fast.")] = "durable",
    example: Annotated[
        Path | None,
        typer.Option("--example", metavar="DIR", help="Folder with flow.yaml, orders and what is expected."),
    ] = None,
    connections: Annotated[int, typer.Option(help="HTTP connections that post orders.", min=1, max=64)] = 4,
) -> None:
    """Start a fresh mesh, run the orders example on it, check every answer and effect, show every hop."""
    from headrace.cli.demo_report import DemoResult, report_json, report_text
    from headrace.cli.demo_run import DemoRun

    def tell(result: DemoResult) -> None:
        if as_json:
            print(json.dumps(report_json(result), ensure_ascii=False), flush=True)
        else:
            print(f"\n{report_text(result)}\n", flush=True)

    try:
        run = DemoRun(
            example=example,
            data=data,
            profile=profile,
            connections=connections,
            out=sys.stderr if as_json else sys.stdout,
        )
        result = asyncio.run(run.run(stay=not once, tell=tell))
    except HeadraceError as error:
        print_error(error)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    if result is None:  # Ctrl-C before there was one
        raise typer.Exit(INTERRUPTED)
    raise typer.Exit(0 if result.ok else FAILED)
