"""`make bench`: runs scenarios, prints their figures, writes build/bench.json. See benchmarks/README.md."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import Any

# The children of a bench are forked beside its own gRPC client, which would tell of it on every fork.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from benchmarks.catalogue import SCENARIOS
from benchmarks.figures import BenchRun, document, machine

TARGET = Path("build/bench.json")


def told(line: str) -> None:
    print(f"  {line}", flush=True)


async def run_all(run: BenchRun, names: list[str], rounds: int) -> dict[str, Any]:
    """All scenarios, and then all again: rounds are interleaved, so that a machine that gets slower meanwhile is in the
    spread of every figure and not in the difference of two."""
    about = machine()
    details: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        if rounds > 1:
            told(f"round {number + 1} of {rounds}")
        for name in names:
            began = time.monotonic()
            details[name].append(await SCENARIOS[name].work(run))
            told(f"{name}: {time.monotonic() - began:.0f} s")
    return document(run, details, rounds, about)


def table(run: BenchRun) -> str:
    """What a person reads: every figure, its spread where there are rounds, and its floor where it has one."""
    lines, group = [], ""
    for name, figure in run.figures.all().items():
        scenario = name.partition(".")[0]
        if scenario != group:
            lines.append(f"\n{scenario}: {SCENARIOS[scenario].about}")
            group = scenario
        line = f"  {name.removeprefix(scenario + '.'):<34}{figure.median:>12.5g} {figure.unit}"
        if len(figure.values) > 1:
            line += f"  ±{figure.spread_percent / 2:.0f} %"
        if figure.ratio:
            line += f"  = {figure.ratio:.2f} x floor of {figure.floor:.5g}"
        lines.append(line)
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make bench",
        description=__doc__,
        epilog="scenarios: " + "; ".join(f"{name}: {found.about}" for name, found in SCENARIOS.items()),
    )
    parser.add_argument("--scenario", default="", help="names with commas between them; default: all")
    parser.add_argument("--rounds", type=int, default=1, help="how often all of it, for medians and spread (default 1)")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a measured stretch (default 4)")
    parser.add_argument("--flows", type=int, default=40, help="flows at rest; 45 MB each (default 40)")
    parser.add_argument("--output", type=Path, default=TARGET, help=f"the file it writes (default {TARGET})")
    given = parser.parse_args()
    given.names = given.scenario.split(",") if given.scenario else list(SCENARIOS)
    if unknown := [name for name in given.names if name not in SCENARIOS]:
        parser.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    if given.rounds < 1 or given.seconds <= 0 or given.flows < 2:
        parser.error("--rounds is at least 1, --seconds more than 0, --flows at least 2")
    return given


def main() -> None:
    given = arguments()
    import uvloop

    run = BenchRun(told, seconds=given.seconds, flows=given.flows)
    began = time.monotonic()
    result = uvloop.run(run_all(run, given.names, given.rounds))
    given.output.parent.mkdir(exist_ok=True, parents=True)
    given.output.write_text(json.dumps(result, indent=1) + "\n")
    print(table(run))
    print(f"\n{time.monotonic() - began:.0f} s; written to {given.output}")


if __name__ == "__main__":
    main()
