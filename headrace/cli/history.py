"""`headrace flow history`: who decided what, when."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.invocation import AddressOption, DataOption, JsonOption, print_json, run_with_client
from headrace.cli.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient


def history(
    flow: Annotated[str, typer.Argument(help="Name of the flow; if left out: all, and the leader's changes.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many entries.")] = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show who decided what and when, newest first, also of a deleted flow."""

    async def work(client: AsyncClient) -> tuple[list[flow_pb2.HistoryEntry], str]:
        return await client.list_history(flow, limit=limit)

    entries, more = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json({"entries": [plain(entry) for entry in entries], "more": bool(more)})
        return
    print(history_text(entries, of_all=not flow) if entries else "no history")
    if more:
        print(f"... and older ones: --limit {limit * 2}")


def history_text(entries: Sequence[flow_pb2.HistoryEntry], *, of_all: bool) -> str:
    """One line per entry, and one for the pins where a deployment took over."""
    rows = []
    for entry in entries:
        when = entry.time.ToDatetime().strftime("%Y-%m-%d %H:%M:%S")
        place = (entry.flow.removeprefix("flows/") or "-",) if of_all else ()
        detail = " ".join(part for part in (entry.detail.partition("\n")[0], _pins(entry)) if part)
        rows.append((when, *place, entry.who, entry.what, entry.version or "-", entry.deployment or "-", detail or "-"))
    head = ("TIME (UTC)", *(("FLOW",) if of_all else ()), "WHO", "WHAT", "VERSION", "DEPLOYMENT", "DETAIL")
    return table(head, rows)


def _pins(entry: flow_pb2.HistoryEntry) -> str:
    return ", ".join(f"{pin.step}={pin.component}@{pin.revision_number}" for pin in entry.pins)
