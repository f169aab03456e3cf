"""`headrace dev FLOW.yaml`: the flow runs, and each save of it or its components is pushed and runs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.invocation import INTERRUPTED, AddressOption, DataOption, find_address, user_name
from headrace.cli.up import Profile
from headrace.edge.data_directory import locate, lock_holder
from headrace.model.errors import Unavailable

if TYPE_CHECKING:
    from headrace.cli.dev_loop import DevLoop
    from headrace.cli.mesh import Mesh

# Time to stop the flow in good order before what was started ends.
LEAVE_S = 8.0


def dev(
    file: Annotated[Path, typer.Argument(help="Flow file (YAML), or a folder with flow.yaml.")],
    profile: Annotated[Profile, typer.Option(help="Durability of a mesh that it starts.")] = Profile.fast,
    logs: Annotated[bool, typer.Option("--logs/--no-logs", help="Show what the flow's components write.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: turns, errors, log lines.")] = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Run a flow while you write it: a save is pushed and runs within two seconds, or its error is shown.

    Uses the mesh that runs, or starts one in the same data directory as every command would. Ctrl-C ends what it
    started, the flow and the mesh, and nothing else."""
    from headrace.cli.dev_loop import DevLoop
    from headrace.cli.dev_report import DevReport

    loop = DevLoop(file, DevReport(as_json=as_json), show_logs=logs)
    found = _mesh_address(address, data)
    if found:
        raise typer.Exit(asyncio.run(_on_running_mesh(loop, found)))

    from headrace.cli.mesh_plan import MeshOptions
    from headrace.cli.mesh_session import run_in_mesh

    async def body(mesh: Mesh, stopping: asyncio.Event) -> int:
        loop.report.mesh_started(mesh.endpoints.data, mesh.start_s)
        return await loop.run(mesh.endpoints.any_api, user_name(), stopping)

    raise typer.Exit(run_in_mesh(MeshOptions(locate(data).path, profile=profile.value), body, patience_s=LEAVE_S))


def _mesh_address(address: str | None, data: Path | None) -> str:
    """Of the mesh that runs; empty where there is none, and one is to be started. A mesh that was named must run."""
    try:
        return find_address(address, data)
    except Unavailable:
        if lock_holder(locate(data)):
            raise  # one is just starting
        return ""


async def _on_running_mesh(loop: DevLoop, address: str) -> int:
    from headrace.cli.mesh_session import on_interrupt

    stopping = asyncio.Event()
    on_interrupt(stopping, at_second=lambda: None)
    working = asyncio.ensure_future(loop.run(address, user_name(), stopping))
    asked = asyncio.ensure_future(stopping.wait())
    await asyncio.wait([working, asked], return_when=asyncio.FIRST_COMPLETED)
    asked.cancel()
    try:
        async with asyncio.timeout(LEAVE_S if stopping.is_set() else None):
            return await working
    except TimeoutError:
        loop.report.left(f"it took longer than {LEAVE_S:g} s to stop what was started; see headrace flow list")
        return INTERRUPTED
