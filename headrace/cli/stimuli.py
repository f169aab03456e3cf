"""`headrace stimuli`: what started a flow's executions, where the flow keeps it; look, and run again from the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.flow_command import FlowArgument, flow_id
from headrace.cli.invocation import (
    FAILED,
    AddressOption,
    DataOption,
    JsonOption,
    printed_as_json,
    run_with_client,
)
from headrace.cli.moments import moment, moment_text
from headrace.cli.tables import byte_size, table
from headrace.cli.terminal import show_text

if TYPE_CHECKING:
    from headrace.api.stimulus.v1 import stimulus_pb2
    from headrace.client import AsyncClient

app = typer.Typer(
    no_args_is_help=True,
    help="List, show and replay what started a flow's executions. Only flows whose file says `history: true` keep it.",
)
HEADINGS = ("NUMBER", "TIME (UTC)", "ORIGIN", "SIZE", "EXECUTION", "REPLAY OF")


@app.command("list")
def list_stimuli(
    flow: FlowArgument,
    since: Annotated[
        str, typer.Option("--since", metavar="TIME", help="Only filed since then: 10m, 2h, or 2026-11-21T15:04:05Z.")
    ] = "",
    until: Annotated[str, typer.Option("--until", metavar="TIME", help="Only filed before then.")] = "",
    text: Annotated[str, typer.Option("--text", metavar="TEXT", help="Only with this text in a header or body.")] = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """List what is kept, newest first."""
    wanted: dict[str, Any] = {"since": moment(since) if since else None, "until": moment(until) if until else None}
    found = run_with_client(
        lambda client: client.list_stimuli(flow, **wanted, text=text, limit=limit),
        address=address,
        data=data,
        as_json=as_json,
    )
    if printed_as_json(found, as_json):
        return
    if found.stimuli:
        show_text(table(HEADINGS, [_row(item) for item in found.stimuli]))
    if found.next_page_token:
        print(f"... and older ones: --limit {limit * 2}")
    print(_counts_line(found.counts))
    name = flow_id(flow)
    if not found.counts.files:
        print(f"{name} files nothing now; for that: `history: true` in its file, headrace flow apply FILE --run")
    elif found.stimuli:
        print(f"run one again: headrace stimuli replay {name} {found.stimuli[0].name.rpartition('/')[2]}")


@app.command()
def show(
    flow: FlowArgument,
    number: Annotated[int, typer.Argument(help="Number of the stimulus, as listed.", min=1)],
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show one whole: headers, body, what it started."""
    item = run_with_client(
        lambda client: client.get_stimulus(flow, number), address=address, data=data, as_json=as_json
    )
    if printed_as_json(item, as_json):
        return
    print(f"{flow_id(flow)} {number}  {item.origin} to {item.step}  {moment_text(item.time)}")
    print(f"execution {item.execution_id}  message {item.message_id}")
    if item.replay_of:
        print(f"replay of {item.replay_of}")
    for header, value in sorted(item.headers.items()):
        print(f"{header}: {value}")
    cut = f", the first {byte_size(len(item.body))}" if item.body_truncated else ""
    print(f"body {item.content_type or 'of no type'}, {byte_size(item.body_size)}{cut}")
    print(item.body.decode(errors="backslashreplace"))


@app.command()
def replay(
    flow: FlowArgument,
    numbers: Annotated[list[int], typer.Argument(help="Numbers of stimuli, as listed.", min=1)],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Run executions again from the start, through the deployment that runs. What they did before is done again."""

    async def work(client: AsyncClient) -> stimulus_pb2.ReplayStimuliResponse:
        return await client.replay_stimuli(flow, numbers, validate_only=dry_run)

    answer = run_with_client(work, address=address, data=data, as_json=as_json)
    if not printed_as_json(answer, as_json):
        print(f"{flow_id(flow)}: {len(answer.replays)} {'would be ' if dry_run else ''}replayed from the start")
        for item in answer.replays:
            print(f"  {item.stimulus.rpartition('/')[2]} to step {item.step}, execution {item.execution_id}")
        for refused in answer.refusals:
            print(f"  {refused.stimulus.rpartition('/')[2]} is not sent: {refused.reason}: {refused.message}")
    if answer.refusals and not answer.replays:
        raise typer.Exit(FAILED)


def _row(item: stimulus_pb2.Stimulus) -> tuple[object, ...]:
    number, of = item.name.rpartition("/")[2], item.replay_of.partition("/")[2].partition("/")[2]
    return number, moment_text(item.time), item.origin, byte_size(item.body_size), item.execution_id, of or "-"


def _counts_line(counts: stimulus_pb2.StimulusCounts) -> str:
    words = f"stimuli {counts.kept} ({byte_size(counts.bytes)})"
    if not counts.max_count:
        return words
    hours = counts.max_age.ToTimedelta().total_seconds() / 3600
    bounds = f"at most {counts.max_count}, {hours:g} h, {byte_size(counts.max_bytes)}"
    return f"{words}, ever {counts.total}, {counts.pushed_out} pushed out; {bounds}"
