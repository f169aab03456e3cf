"""`headrace dead-letters`: messages that were given up; look at them, send them again, or throw them away."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.attachment_files import save_all
from headrace.cli.flow_command import FlowArgument, flow_id
from headrace.cli.invocation import (
    FAILED,
    AddressOption,
    DataOption,
    JsonOption,
    print_json,
    print_usage,
    printed_as_json,
    require_yes,
    run_with_client,
)
from headrace.cli.letter_edit import edit
from headrace.cli.letter_tables import DOUBT_HEADINGS, HEADINGS, counts_line, doubt_row, letter_row, letter_text
from headrace.cli.moments import moment
from headrace.cli.tables import byte_size, short_digest, table
from headrace.cli.terminal import show_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.api.deadletter.v1 import dead_letter_pb2
    from headrace.client import AsyncClient

app = typer.Typer(
    no_args_is_help=True,
    help="List, show, edit, replay and discard messages that a flow gave up. Each flow keeps its newest ones.",
)

NumbersArgument = Annotated[list[int] | None, typer.Argument(help="Numbers of letters, as listed.", min=1)]
StepOption = Annotated[str, typer.Option("--step", metavar="STEP", help="Only those of this step.")]
ReasonOption = Annotated[str, typer.Option("--reason", metavar="REASON", help="Only those of this reason.")]
AllOption = Annotated[bool, typer.Option("--all", help="All letters, or all that fit the filters.")]
SinceOption = Annotated[
    str, typer.Option("--since", metavar="TIME", help="Only given up since then: 10m, 2h, or 2026-11-21T15:04:05Z.")
]
UntilOption = Annotated[str, typer.Option("--until", metavar="TIME", help="Only given up before then.")]
TextOption = Annotated[
    str, typer.Option("--text", metavar="TEXT", help="Only with this text in an error, a header or the body.")
]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")]
MOST_LINES = 20


@app.command("list")
def list_letters(
    flow: Annotated[str, typer.Argument(help="Name of the flow; if left out: how many each flow keeps.")] = "",
    step: StepOption = "",
    reason: ReasonOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    text: TextOption = "",
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=10_000, help="At most so many.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Then show new ones as they come.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """List dead letters, newest first, and their counts."""
    if not flow:
        _print_all_flows(as_json, address, data)
        return
    wanted = _filter(step, reason, since, until, text)

    async def work(client: AsyncClient) -> None:
        found = await client.list_dead_letters(flow, **wanted, limit=limit)
        _print_list(flow, found, limit, as_json)
        if follow:
            sys.stdout.flush()
            newest = found.counts.total
            async for seen in client.watch_dead_letters(flow, step=step, reason=reason, after=newest):
                for letter in seen.dead_letters:
                    _print_new(letter, as_json)

    run_with_client(work, address=address, data=data, as_json=as_json)


@app.command()
def show(
    flow: FlowArgument,
    number: Annotated[int, typer.Argument(help="Number of the letter, as listed.", min=1)],
    save: Annotated[
        Path | None, typer.Option("--save", metavar="FOLDER", help="Save its attachments there, too.")
    ] = None,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Show one letter whole: what it was, every failed attempt, headers, body, and what its deployment ran."""

    async def work(client: AsyncClient) -> tuple[dead_letter_pb2.DeadLetter, list[Path]]:
        found = await client.get_dead_letter(flow, number)
        return found, await save_all(client, flow, found.attachments, save) if save is not None else []

    letter, saved = run_with_client(work, address=address, data=data, as_json=as_json)
    if printed_as_json(letter, as_json):
        return
    print(letter_text(letter))
    for path in saved:
        print(f"saved {path}")
    if not letter.unreadable:
        print(f"replay it: headrace dead-letters replay {flow_id(flow)} {number}")


app.command("edit")(edit)


@app.command()
def replay(
    flow: FlowArgument,
    numbers: NumbersArgument = None,
    all_letters: AllOption = False,
    step: StepOption = "",
    reason: ReasonOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    text: TextOption = "",
    from_start: Annotated[
        bool,
        typer.Option("--from-start", help="Run the whole execution again; only of flows that keep `history`."),
    ] = False,
    revision: Annotated[
        str,
        typer.Option(
            "--revision", metavar="REV", help="Through this revision of the step's component: 3, 1.2.0, a tag."
        ),
    ] = "",
    dry_run: DryOption = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Send letters again to the step that failed them, oldest first. They go to their own deployment while that is
    live, else to the one that runs; the answer says which."""
    wanted = _choice(numbers, all_letters, _filter(step, reason, since, until, text), dry_run)
    wanted |= {"from_start": from_start, "revision": revision}

    async def work(client: AsyncClient) -> dead_letter_pb2.ReplayDeadLettersResponse:
        return await client.replay_dead_letters(flow, numbers or (), all_letters=all_letters, **wanted)

    answer = run_with_client(work, address=address, data=data, as_json=as_json)
    if not printed_as_json(answer, as_json):
        print(f"{flow_id(flow)}: {answer.replayed} {'would be ' if dry_run else ''}replayed")
        _print_targets(answer.replays)
        _print_refusals(answer.refusals)
    if answer.remaining and not as_json:
        print(f"{answer.remaining} remain; go on with the same command")
    if answer.refusals and not answer.replayed:
        raise typer.Exit(FAILED)


@app.command()
def discard(
    flow: FlowArgument,
    numbers: NumbersArgument = None,
    all_letters: AllOption = False,
    step: StepOption = "",
    reason: ReasonOption = "",
    since: SinceOption = "",
    until: UntilOption = "",
    text: TextOption = "",
    dry_run: DryOption = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """Delete letters for good; the flow's history and counts keep how many, and who did it."""
    filters = _filter(step, reason, since, until, text)
    wanted = _choice(numbers, all_letters, filters, dry_run)
    which = f"{len(numbers)} dead letters" if numbers else "all dead letters" + _filter_words(filters)
    require_yes(yes or dry_run, f"Delete {which} of {flow} for good?")

    async def work(client: AsyncClient) -> dead_letter_pb2.DiscardDeadLettersResponse:
        return await client.discard_dead_letters(flow, numbers or (), all_letters=all_letters, **wanted)

    answer = run_with_client(work, address=address, data=data, as_json=as_json)
    if not printed_as_json(answer, as_json):
        print(f"{flow_id(flow)}: {answer.discarded} {'would be ' if dry_run else ''}discarded")
        _print_refusals(answer.refusals)
    if answer.refusals and not answer.discarded:
        raise typer.Exit(FAILED)


@app.command("in-doubt")
def in_doubt(
    flow: FlowArgument,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=500, help="At most so many.")] = 50,
    as_json: JsonOption = False,
    address: AddressOption = None,
    data: DataOption = None,
) -> None:
    """List messages that were processed although nobody could tell whether they had been before: broker and sidecar
    were lost together. What they led to may be there twice."""
    found = run_with_client(
        lambda client: client.list_in_doubt(flow, limit=limit), address=address, data=data, as_json=as_json
    )
    if printed_as_json(found, as_json):
        return
    if not found.messages:
        print("no message was ever in doubt")
    else:
        show_text(table(DOUBT_HEADINGS, [doubt_row(message) for message in found.messages]))
        print(f"{found.total} records")


def _print_list(flow: str, found: dead_letter_pb2.ListDeadLettersResponse, limit: int, as_json: bool) -> None:
    if as_json:
        from headrace.cli.plain import plain

        letters = [plain(letter) for letter in found.dead_letters]
        print_json({"dead_letters": letters, "more": bool(found.next_page_token), "counts": plain(found.counts)})
        return
    if found.dead_letters:
        show_text(table(HEADINGS, [letter_row(letter) for letter in found.dead_letters]))
    if found.next_page_token:
        print(f"... and older ones: --limit {limit * 2}")
    print(counts_line(found.counts))
    if found.dead_letters:
        name = flow_id(flow)
        number = found.dead_letters[0].name.rpartition("/")[2]
        print(f"look at one: headrace dead-letters show {name} {number}")
        print(f"send all again: headrace dead-letters replay {name} --all; or discard instead of replay")


def _print_new(letter: dead_letter_pb2.DeadLetter, as_json: bool) -> None:
    if not printed_as_json(letter, as_json):
        print("  ".join(str(cell) for cell in letter_row(letter)), flush=True)


def _print_all_flows(as_json: bool, address: Any, data: Any) -> None:
    async def work(client: AsyncClient) -> list[tuple[str, dead_letter_pb2.DeadLetterCounts]]:
        names = [flow_id(flow.name) for flow in await client.list_flows()]
        return [(name, (await client.list_dead_letters(name, limit=1)).counts) for name in names]

    found = run_with_client(work, address=address, data=data, as_json=as_json)
    if as_json:
        from headrace.cli.plain import plain

        print_json({"flows": [{"flow": name, "counts": plain(counts)} for name, counts in found]})
        return
    rows = [
        (name, it.waiting, byte_size(it.bytes), it.replayed, it.discarded, it.pushed_out)
        for name, it in found
        if it.total
    ]
    if not rows:
        print("no dead letters")
        return
    show_text(table(("FLOW", "LETTERS", "SIZE", "REPLAYED", "DISCARDED", "PUSHED OUT"), rows))
    print(f"list them: headrace dead-letters list {rows[0][0]}")


def _print_targets(replays: Sequence[dead_letter_pb2.Replay]) -> None:
    """One line per step and deployment: how many went where."""
    counts: dict[tuple[str, int, int, str], int] = {}
    for item in replays:
        revision = "the revision that failed it" if item.same_revision else f"revision {short_digest(item.revision)}"
        if not item.revision:
            revision = "from the start"
        revision += ", as edited" if item.edited else ""
        key = (item.step, item.deployment, item.version, revision)
        counts[key] = counts.get(key, 0) + 1
    for (step, deployment, version, revision), count in sorted(counts.items()):
        print(f"  {count} to step {step} of deployment {deployment} (version {version}, {revision})")


def _print_refusals(refusals: Sequence[dead_letter_pb2.Refusal]) -> None:
    for item in refusals[:MOST_LINES]:
        print(f"  {item.dead_letter.rpartition('/')[2]} stays: {item.reason}: {item.message}")
    if len(refusals) > MOST_LINES:
        print(f"  and {len(refusals) - MOST_LINES} more")


def _filter(step: str, reason: str, since: str, until: str, text: str) -> dict[str, Any]:
    times = {"since": moment(since) if since else None, "until": moment(until) if until else None}
    return {"step": step, "reason": reason, **times, "text": text}


def _choice(numbers: list[int] | None, all_letters: bool, filters: dict[str, Any], dry_run: bool) -> dict[str, Any]:
    """What the client's call takes besides; wrong usage where it is not clear which letters are meant."""
    if bool(numbers) == all_letters:
        print_usage("give numbers of letters, or --all")
    if numbers and any(filters.values()):
        print_usage("--step, --reason, --since, --until and --text need --all")
    return {**filters, "validate_only": dry_run}


def _filter_words(filters: dict[str, Any]) -> str:
    return "".join(f" of {name} {value}" for name, value in filters.items() if value)
