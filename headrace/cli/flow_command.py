"""What the commands of `headrace flow` share: arguments, progress, hints."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.invocation import print_json
from headrace.cli.progress import ProgressLines

if TYPE_CHECKING:
    from google.protobuf.message import Message

FlowArgument = Annotated[str, typer.Argument(help="Name of the flow.")]
LimitOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="Limit.")]


def flow_id(name: str) -> str:
    """`orders` for `flows/orders`."""
    return name.removeprefix("flows/")


def hint(command: str) -> None:
    """What to type next; for people only, so not into a pipe."""
    if sys.stdout.isatty():
        print(f"  next: {command}")


def progress_lines(as_json: bool) -> ProgressLines | None:
    """Progress on standard error, unless the output is for a program."""
    return None if as_json else ProgressLines()


def printed_as_json(message: Message, as_json: bool) -> bool:
    """Prints a message as JSON where asked; answers whether it did."""
    if as_json:
        from headrace.cli.plain import plain

        print_json(plain(message))
    return as_json
