"""`headrace logs FLOW`: what components and sidecars wrote."""

from __future__ import annotations

import json
import sys
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.flow_command import FlowArgument
from headrace.cli.invocation import AddressOption, DataOption, run_with_client
from headrace.cli.moments import moment

if TYPE_CHECKING:
    from headrace.api.flow.v1 import flow_pb2
    from headrace.client import AsyncClient

DEFAULT_LINES, MOST = 50, 1000


def logs(
    flow: FlowArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    step: Annotated[str, typer.Option(help="Only this step.")] = "",
    execution: Annotated[str, typer.Option(help="Only lines written in calls of this execution.")] = "",
    level: Annotated[str, typer.Option(help="Only this level and above: debug, info, warning, error.")] = "",
    since: Annotated[
        str, typer.Option(metavar="TIME", help="Only lines since then: 10m, 2h, or 2026-11-21T15:04:05Z.")
    ] = "",
    lines: Annotated[
        int | None, typer.Option(help="Lines of the past; 50, with --since or --execution 1000.", min=1, max=1000)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Print log lines, oldest first: what components and sidecars wrote, secrets masked."""
    begin = moment(since) if since else None
    wanted = lines or (MOST if since or execution else DEFAULT_LINES)

    def say_gone() -> None:
        print("headrace: older lines than these were kept no longer", file=sys.stderr)

    async def work(client: AsyncClient) -> None:
        tail = client.tail_logs(
            flow,
            step=step,
            lines=wanted,
            follow=follow,
            execution=execution,
            level=level,
            since=begin,
            on_gone=say_gone,
        )
        async with aclosing(tail) as stream:
            async for line in stream:
                print(json.dumps(line_facts(line), ensure_ascii=False) if as_json else line_text(line), flush=True)

    run_with_client(work, address=address, data=data, as_json=as_json)


def line_text(line: flow_pb2.LogLine) -> str:
    """`12:00:00.123  price  info  greeting  name=Ada`."""
    moment = line.time.ToDatetime().strftime("%H:%M:%S.%f")[:-3]
    fields = json.loads(line.fields_json) if line.fields_json else {}
    if line.execution_id:  # the rest is in --json; the execution is what a person looks for
        fields["execution"] = line.execution_id
    rest = "".join(f"  {key}={_value(value)}" for key, value in fields.items())
    return f"{moment}  {line.step or '-':<12} {line.level:<7} {line.message}{rest}"


def _value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def line_facts(line: flow_pb2.LogLine) -> dict[str, Any]:
    """A log line as plain data, its fields decoded."""
    from headrace.cli.plain import plain

    facts: dict[str, Any] = plain(line)
    facts["fields"] = json.loads(facts.pop("fields_json") or "{}")
    return facts
