"""`headrace completion SHELL`, and what is completed besides commands and options: names that the mesh knows."""

from __future__ import annotations

import asyncio
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.model.errors import HeadraceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from headrace.client import AsyncClient

VARIABLE = "_HEADRACE_COMPLETE"
# A person waits at the prompt: what is not known by then is not offered.
ASK_LIMIT_S = 1.0


class Shell(StrEnum):
    bash = "bash"
    zsh = "zsh"
    fish = "fish"


def completion(shell: Annotated[Shell, typer.Argument(help="The shell that is to complete.")]) -> None:
    """Print the script that teaches a shell to complete commands, options, flows and components."""
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    print(get_completion_script(prog_name="headrace", complete_var=VARIABLE, shell=shell.value))


def complete_flows(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of flows; none where no mesh answers."""

    async def names(client: AsyncClient) -> list[str]:
        return [flow.name.removeprefix("flows/") for flow in await client.list_flows()]

    return _asked(ctx, names, incomplete)


def complete_components(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of components; none where no mesh answers."""

    async def names(client: AsyncClient) -> list[str]:
        return [item.name.removeprefix("components/") for item in await client.list_components()]

    return _asked(ctx, names, incomplete)


def _asked(ctx: typer.Context, names: Callable[[AsyncClient], Awaitable[list[str]]], incomplete: str) -> list[str]:
    from headrace.cli.invocation import find_address
    from headrace.client import AsyncClient

    address, data = ctx.params.get("address"), ctx.params.get("data")

    async def ask() -> list[str]:
        async with asyncio.timeout(ASK_LIMIT_S):
            found = find_address(address, Path(data) if data else None)
            async with AsyncClient(found, timeout_s=ASK_LIMIT_S) as client:
                return await names(client)

    try:
        return [name for name in asyncio.run(ask()) if name.startswith(incomplete)]
    except (HeadraceError, TimeoutError):
        return []
