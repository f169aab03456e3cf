"""What the commands about one flow share: its name as an argument, limits, progress."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from headrace.cli.completion import complete_flows
from headrace.cli.progress import ProgressLines

FlowArgument = Annotated[str, typer.Argument(help="Name of the flow.", autocompletion=complete_flows)]
LimitOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="Limit.")]
GOES_ON = "What was begun goes on in the mesh"


def flow_id(name: str) -> str:
    """`orders` for `flows/orders`."""
    return name.removeprefix("flows/")


def progress_lines(as_json: bool) -> ProgressLines | None:
    """Progress on standard error; not in a pipe, and not where the output is for a program."""
    return ProgressLines() if sys.stderr.isatty() and not as_json else None
