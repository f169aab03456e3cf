"""Puts the figures of the newest bench into README.md and docs/performance.md: `python -m tools.bench_tables`.

Tables stand between `<!-- bench:NAME -->` and `<!-- bench:end -->`; a test holds them to the newest file of schema 2 in
benchmarks/results/.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from headrace.cli.bench_figures import BenchFile, Figure, read_bench_file
from headrace.model.errors import HeadraceError
from tools.generated_files import keep

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACES = (ROOT / "README.md", ROOT / "docs" / "performance.md", ROOT / "docs" / "scaling.md")
PROFILES = ("fast", "durable")
_MARKED = re.compile(r"(<!-- bench:(\w+) -->\n).*?(<!-- bench:end -->)", re.DOTALL)

# What README says: a label, and figures with {p} for the profile; those without it stand under `fast` alone.
SUMMARY: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("raw publish→deliver at 200/s (floor)", ("floors.{p}.publish_to_deliver",)),
    ("raw Unix socket, raw gRPC round trip (floors)", ("floors.unix_socket_round_trip", "floors.grpc_round_trip")),
    ("one hop at 200/s, no-op component, p50 / p99", ("profiles.{p}.hop_p50", "profiles.{p}.hop_p99")),
    ("trigger + 2 actions at 200/s, p50 / p99", ("profiles.{p}.end_to_end_p50", "profiles.{p}.end_to_end_p99")),
    ("trigger + 2 actions, saturated", ("profiles.{p}.trigger+2.rate",)),
    ("processor time of a message in it, all processes", ("profiles.{p}.trigger+2.cpu_all",)),
    ("the same, trigger without a process", ("profiles.{p}.direct+2.rate",)),
    ("the same with keyed steps, 100 keys", ("keyed.{p}.100",)),
    ("HTTP request to answer through 3 steps at 100/s, p50 / p99", ("gateway.100.p50", "gateway.100.p99")),
    ("cost of traces at 0 / 1 / 100 %", ("tracing.0.cost", "tracing.1.cost", "tracing.100.cost")),
    ("start of 3 steps to the first answer, cold / cached", ("start.cold.first_answer", "start.cached.first_answer")),
    ("callers at 500/s, p99 before / during switches", ("switch.{p}.p99_steady", "switch.{p}.p99_switching")),
    ("restart → first answer by new code", ("switch.{p}.new_code",)),
    ("memory (PSS) of one idle instance, sidecar and component", ("start.instance_pss",)),
)


@dataclass(frozen=True)
class Target:
    """A row of what is to be reached: `figure`, or its ratio to the floor; `most` or `least` by which way is better."""

    label: str
    figure: str
    must: float
    aim: float
    of_ratio: bool = False
    in_units: float = 1.0
    unit: str = ""


TARGETS = (
    Target("hop p50 at 200/s, `fast`", "profiles.fast.hop_p50", 0.9, 0.5, in_units=1e-3, unit="ms"),
    Target("hop p99 at 200/s, `fast`", "profiles.fast.hop_p99", 3, 1.5, in_units=1e-3, unit="ms"),
    Target("hop p50 ÷ floor", "profiles.fast.hop_p50", 2.5, 1.4, of_ratio=True),
    Target("trigger + 2 actions saturated, `fast`", "profiles.fast.trigger+2.rate", 10_000, 15_000, unit="msg/s"),
    Target("the same, trigger without a process", "profiles.fast.direct+2.rate", 10_000, 20_000, unit="msg/s"),
    Target("trigger + 2 actions saturated, `durable`", "profiles.durable.trigger+2.rate", 4_000, 8_000, unit="msg/s"),
    Target("start of 3 steps, cold, to the first answer", "start.cold.first_answer", 3, 1, unit="s"),
    Target("start with environments cached", "start.cached.first_answer", 1, 0.3, unit="s"),
    Target("WARM_SWITCH at 500/s over steady p99, `fast`", "switch.fast.pause_over_steady", 50, 0, unit="ms"),
    Target("the same, `durable`", "switch.durable.pause_over_steady", 50, 0, unit="ms"),
    Target("PSS of one idle instance", "start.instance_pss", 70, 45, unit="MB"),
    Target("cost of tracing at 100 %", "tracing.100.cost", 15, 8, unit="%"),
)


def newest(folder: Path = RESULTS) -> tuple[Path, BenchFile]:
    """The file of the last run, by the time in it; files of other schemas are passed over."""
    found: list[tuple[str, Path, BenchFile]] = []
    for path in folder.glob("*.json"):
        try:
            file = read_bench_file(path)
        except HeadraceError:
            continue
        found.append((str(file.machine.get("time", "")), path, file))
    _, path, file = max(found)
    return path, file


def render() -> dict[Path, str]:
    """Both documents, with their tables as the newest figures have them."""
    path, file = newest()
    tables: dict[str, Callable[[], Sequence[str]]] = {
        "source": lambda: _source(path, file),
        "summary": lambda: _summary(file),
        "targets": lambda: _targets(file),
        "shapes": lambda: _shapes(file),
        "latency": lambda: _latency(file),
        "scale": lambda: _scale(file),
    }

    def filled(match: re.Match[str]) -> str:
        return match[1] + "\n".join(tables[match[2]]()) + "\n" + match[3]

    return {place: _MARKED.sub(filled, place.read_text(encoding="utf-8")) for place in PLACES if place.exists()}


def _source(path: Path, file: BenchFile) -> list[str]:
    machine = file.machine
    return [
        f"Newest run: `{path.relative_to(ROOT)}`, commit {machine.get('commit')}, {machine.get('cores')} cores, "
        "everything on one machine."
    ]


def _summary(file: BenchFile) -> list[str]:
    lines = ["| | `fast` | `durable` |", "|---|---|---|"]
    for label, names in SUMMARY:
        both = any("{p}" in name for name in names)
        cells = [_cell(file, [name.format(p=profile) for name in names]) for profile in PROFILES]
        lines.append(f"| {label} | {cells[0]} | {cells[1] if both else ''} |")
        if label.startswith("one hop"):
            ratios = [_ratio(file.figures.get(f"profiles.{profile}.hop_p50")) for profile in PROFILES]
            lines.append(f"| hop p50 ÷ (publish→deliver + raw Unix socket, same minute) | {ratios[0]} | {ratios[1]} |")
    return lines


def _cell(file: BenchFile, names: Sequence[str]) -> str:
    figures = [file.figures[name] for name in names if name in file.figures]
    if len(figures) < len(names):
        return "not measured"
    unit, factor = _shown(figures[0].unit)
    return " / ".join(_number(figure.median * factor) for figure in figures) + f" {unit}"


def _shown(unit: str) -> tuple[str, float]:
    shown = {"us": ("ms", 1e-3), "messages/s": ("msg/s", 1.0), "us/message": ("µs", 1.0), "us/request": ("µs", 1.0)}
    return shown.get(unit, (unit, 1.0))


def _number(value: float) -> str:
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _ratio(figure: Figure | None) -> str:
    return f"{figure.ratio:.2f}" if figure and figure.ratio else "not measured"


def _targets(file: BenchFile) -> list[str]:
    lines = ["| what | must | aim | reached | |", "|---|---|---|---|---|"]
    for target in TARGETS:
        figure = file.figures.get(target.figure)
        if figure is None:
            lines.append(f"| {target.label} | | | not measured | |")
            continue
        value = figure.ratio if target.of_ratio else figure.median * target.in_units
        numbers = " | ".join(_number(number) if number else "0" for number in (target.must, target.aim))
        lines.append(
            f"| {target.label} | {numbers} | {_number(value)} {target.unit} | {_verdict(target, figure, value)} |"
        )
    return lines


def _verdict(target: Target, figure: Figure, value: float) -> str:
    def reached(limit: float) -> bool:
        return value <= limit if figure.better == "less" or target.of_ratio else value >= limit

    return "aim reached" if reached(target.aim) else "must reached" if reached(target.must) else "**short of the must**"


def _shapes(file: BenchFile) -> list[str]:
    """Every shape of the throughput scenario, with its processor time by process."""
    lines = ["| | msg/s | broker | sidecars | components | all |", "|---|---|---|---|---|---|"]
    for name in file.figures:
        scenario, _, rest = name.partition(".")
        case, _, what = rest.rpartition(".")
        if scenario == "throughput" and what == "rate" and f"throughput.{case}.cpu_all" in file.figures:
            kinds = ("rate", "cpu_broker", "cpu_sidecars", "cpu_components", "cpu_all")
            values = [_number(file.figures[f"throughput.{case}.{kind}"].median) for kind in kinds]
            lines.append(f"| {case} | {' | '.join(values)} |")
    return lines


def _latency(file: BenchFile) -> list[str]:
    """Every rate of the latency scenario."""
    lines = [
        "| messages/s | floor p50 | hop p50 | ÷ floor | hop p99 | 3 steps p50 | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, figure in file.figures.items():
        if name.startswith("latency.") and name.endswith(".hop_p50"):
            rate = name.split(".")[1]
            rest = [file.figures[f"latency.{rate}.{what}"] for what in ("hop_p99", "end_to_end_p50", "end_to_end_p99")]
            ms = [_number(each.median / 1e3) for each in rest]
            start = (
                f"| {rate} | {_number(figure.floor / 1e3)} ms | {_number(figure.median / 1e3)} ms | {figure.ratio:.2f} "
            )
            lines.append(start + "".join(f"| {value} ms " for value in ms) + "|")
    return lines


def _scale(file: BenchFile) -> list[str]:
    """Every number of flows, and every number of replicas."""
    lines = [
        "| flows of two steps at 500 messages/s in all | µs a message | of it the orchestrator | hop p50 |",
        "|---|---|---|---|",
    ]
    for name, figure in file.figures.items():
        if name.startswith("scale.flows-") and name.endswith(".cpu_all"):
            case = name.removesuffix(".cpu_all")
            orchestrator, hop = file.figures[f"{case}.cpu_orchestrator"], file.figures[f"{case}.hop_p50"]
            count = case.removeprefix("scale.flows-")
            values = _number(figure.median), _number(orchestrator.median), _number(hop.median / 1e3)
            lines.append(f"| {count} | {values[0]} | {values[1]} | {values[2]} ms |")
    lines += ["", "| replicas of a step of 1 ms of work | messages/s |", "|---|---|"]
    for name, figure in file.figures.items():
        if name.startswith("scale.replicas-"):
            lines.append(f"| {name.removeprefix('scale.replicas-').removesuffix('.rate')} | {_number(figure.median)} |")
    return lines


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.bench_tables", render))
