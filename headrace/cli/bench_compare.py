"""`headrace bench compare`: what moved between two files of `make bench`, beyond their noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.bench_figures import compare as compared
from headrace.cli.bench_figures import read_bench_file
from headrace.cli.invocation import JsonOption, print_json

if TYPE_CHECKING:
    from headrace.cli.bench_figures import BenchFile, Change


def compare(
    before: Annotated[Path, typer.Argument(help="A file that `make bench` wrote.", metavar="A")],
    after: Annotated[Path, typer.Argument(help="Another one.", metavar="B")],
    everything: Annotated[bool, typer.Option("--all", help="Also what did not move.")] = False,
    scenario: Annotated[str, typer.Option(help="Only figures that begin with this, for example latency.200.")] = "",
    as_json: JsonOption = False,
) -> None:
    """Show which figures of B are better or worse than in A, beyond noise.

    Noise is the larger of the two spreads over rounds (make bench BENCH_ARGS="--rounds 3"), 15 % where a file has fewer
    than three. A figure with a floor is judged by its ratio to it, so that a faster machine is no faster mesh."""
    files = read_bench_file(before), read_bench_file(after)
    changes = [change for change in compared(*files) if change.name.startswith(scenario)]
    shown = [change for change in changes if everything or change.verdict != "same"]
    if as_json:
        import msgspec

        print_json({"figures": len(changes), "changes": msgspec.to_builtins(shown)})
        return
    print(_text(files, changes, shown))


def _text(files: tuple[BenchFile, BenchFile], changes: list[Change], shown: list[Change]) -> str:
    from headrace.cli.tables import table

    lines = [
        f"{letter}: {file.machine.get('commit', '?')}, {file.machine.get('time', '?')}, "
        f"{file.machine.get('cores', '?')} cores, rounds: {file.rounds}"
        for letter, file in zip("AB", files, strict=True)
    ]
    if shown:
        lines += ["", table(("FIGURE", "A", "B", "UNIT", "CHANGE", "NOISE", ""), [_row(change) for change in shown])]
    unmoved = sum(change.verdict == "same" for change in changes)
    lines += ["", f"{len(changes)} figures in both; {unmoved} did not move beyond noise"]
    if any(change.of_ratio for change in shown):
        lines.append("* the change is that of the ratio to the floor of the same minute")
    return "\n".join(lines)


def _row(change: Change) -> tuple[str, str, str, str, str, str, str]:
    return (
        change.name,
        f"{change.before:.4g}",
        f"{change.after:.4g}",
        change.unit,
        f"{change.change_percent:+.0f} %{' *' if change.of_ratio else ''}",
        f"{change.noise_percent:.0f} %",
        "" if change.verdict == "same" else change.verdict,
    )
