"""`headrace snapshot`: what steps keep between messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.flow_command import FlowArgument
from headrace.cli.invocation import (
    AddressOption,
    DataOption,
    JsonOption,
    print_json,
    printed_as_json,
    require_yes,
    run_with_client,
)
from headrace.cli.tables import table

if TYPE_CHECKING:
    from headrace.api.snapshot.v1 import snapshot_pb2
    from headrace.client import AsyncClient

app = typer.Typer(
    no_args_is_help=True,
    help="Show and reset what steps keep between messages. It is kept across versions, and goes with the flow.",
)
KeyOption = Annotated[str, typer.Option("--key", metavar="KEY", help="Only that of this key, of a step with `key`.")]
SHOWN = 100


@app.command()
def show(
    flow: FlowArgument,
    step: Annotated[str, typer.Argument(help="Only that of this step.")] = "",
    key: KeyOption = "",
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show the snapshots of a flow; with a step and --key, or --json, whole."""

    async def work(client: AsyncClient) -> None:
        found = await client.list_snapshots(flow, step, key)
        if printed_as_json(found, as_json):
            return
        if key and found.snapshots:
            print(found.snapshots[0].json)
            return
        if not found.snapshots:
            print(f"{flow} keeps no snapshot" + (f" of {step}" if step else ""))
            return
        print(table(("STEP", "KEY", "REVISION", "SAVED", "VERSION", "VALUE"), [_row(item) for item in found.snapshots]))
        if found.truncated:
            print("There are more: name a --key")

    run_with_client(work, address=address, data=data, as_json=as_json)


def _row(item: snapshot_pb2.Snapshot) -> tuple[object, ...]:
    value = item.json if len(item.json) <= SHOWN else item.json[: SHOWN - 3] + "..."
    saved = item.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%SZ")
    return (item.step, item.key or "-", item.revision, saved, item.version, value)


@app.command()
def reset(
    flow: FlowArgument,
    step: Annotated[str, typer.Argument(help="Name of the step.")],
    key: KeyOption = "",
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Forget what a step keeps; only while the flow is stopped."""
    require_yes(yes, f"Forget what step {step} of {flow} keeps{f' for key {key}' if key else ''}?")

    async def work(client: AsyncClient) -> None:
        count = await client.reset_snapshots(flow, step, key)
        if as_json:
            print_json({"flow": flow, "step": step, "key": key, "reset": count})
        else:
            print(f"{step}: {count} {'snapshot' if count == 1 else 'snapshots'} forgotten")

    run_with_client(work, address=address, data=data, as_json=as_json)
