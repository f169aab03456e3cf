"""What every command shares: its options, the client, exit statuses, errors as people read them.

Exit statuses: 0 done, 1 refused or failed, 2 wrong usage, 3 no mesh answers, 130 interrupted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn, TypeVar

import typer

from headrace.cli.terminal import waiting
from headrace.model.errors import HeadraceError, NotFound, Unavailable

if TYPE_CHECKING:
    from google.protobuf.message import Message

    from headrace.client import AsyncClient

FAILED = 1
WRONG_USAGE = 2
UNREACHABLE = 3
INTERRUPTED = 130
# How long --queue waits for the operation at work.
QUEUE_S = 600.0

Answer = TypeVar("Answer")

AddressOption = Annotated[
    str | None,
    typer.Option("--address", metavar="HOST:PORT", envvar="HEADRACE_ADDRESS", help="API address of the mesh."),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Data directory of the mesh; default $HEADRACE_DATA or ./.headrace."),
]
QueueOption = Annotated[
    bool, typer.Option("--queue", help="Wait for the operation at work on the flow instead of being refused.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")]


def run_with_client(
    work: Callable[[AsyncClient], Awaitable[Answer]],
    *,
    address: str | None,
    data: Path | None,
    as_json: bool = False,
    if_interrupted: str = "",
    queue: bool = False,
    doing: str = "",
) -> Answer:
    """Runs `work` with an open client; prints an error in one or two lines and exits with its status.

    `if_interrupted` is what a person should know who ends it with Ctrl-C, `doing` what a terminal shows while it
    takes long.
    """
    try:
        found = find_address(address, data)
        with waiting(doing if not as_json else ""):
            return asyncio.run(_open_and_run(work, found, QUEUE_S if queue else 0.0))
    except HeadraceError as error:
        print_error(error, as_json=as_json)
        raise typer.Exit(UNREACHABLE if isinstance(error, Unavailable) else FAILED) from None
    except KeyboardInterrupt:
        if if_interrupted:
            print(f"headrace: interrupted. {if_interrupted}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None


async def _open_and_run(work: Callable[[AsyncClient], Awaitable[Answer]], address: str, queue_s: float) -> Answer:
    from headrace.client import AsyncClient

    async with AsyncClient(address, user=user_name(), queue_s=queue_s) as client:
        return await work(client)


def user_name() -> str:
    """Who types, for the history: the operating system's name of the user."""
    import getpass

    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def find_address(address: str | None, data: Path | None) -> str:
    """The address given, else the one that the mesh wrote into its data directory."""
    if address:
        return address
    from headrace.edge.data_directory import api_of_this_machine

    return api_of_this_machine(data)


def print_error(error: HeadraceError, *, as_json: bool = False) -> None:
    """On standard error: what is wrong, then what to do next."""
    if as_json:
        print(json.dumps({"error": error_facts(error)}, ensure_ascii=False), file=sys.stderr)
        return
    print(f"headrace: {error.message}", file=sys.stderr)
    for violation in error.violations:
        if violation.field not in error.message and violation.description not in error.message:
            print(f"  {violation.field}: {violation.description}", file=sys.stderr)
    next_step = error.next_step or ("See `headrace flow list`" if isinstance(error, NotFound) else "")
    if next_step:
        print(f"  {next_step}", file=sys.stderr)


def error_facts(error: HeadraceError) -> dict[str, object]:
    """An error as plain data."""
    return {
        "reason": error.reason,
        "message": error.message,
        "next_step": error.next_step,
        "violations": [{"field": item.field, "description": item.description} for item in error.violations],
    }


def print_json(facts: object) -> None:
    """One JSON object, indented where a person reads it."""
    print(json.dumps(facts, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


def printed_as_json(message: Message, as_json: bool) -> bool:
    """Prints a message as JSON where asked; answers whether it did."""
    if as_json:
        from headrace.cli.plain import plain

        print_json(plain(message))
    return as_json


def hint(command: str) -> None:
    """What to type next; for people only, so not into a pipe."""
    if sys.stdout.isatty():
        print(f"  next: {command}")


def print_usage(problem: str) -> NoReturn:
    """Ends with the exit status of wrong usage."""
    print(f"headrace: {problem}", file=sys.stderr)
    raise typer.Exit(WRONG_USAGE)


def require_yes(yes: bool, question: str) -> None:
    """Asks on a terminal; elsewhere refuses without --yes."""
    if yes:
        return
    if not sys.stdin.isatty():
        print(f"headrace: {question}\n  Add --yes to go ahead", file=sys.stderr)
        raise typer.Exit(WRONG_USAGE)
    if not typer.confirm(question):
        raise typer.Exit(FAILED)


def header_pair(text: str) -> tuple[str, str]:
    """A `--header NAME=VALUE`, its name in lower case; wrong usage else."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        print_usage(f"--header {text}: write NAME=VALUE")
    return name.lower(), value
