"""What `make bench` writes (`build/bench.json`), and what moved between two such files."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any, Literal

import msgspec

from headrace.model.errors import InvalidInput

SCHEMA = 2
LESS, MORE = "less", "more"
# Fewer rounds say nothing about the spread, so then a change counts from here on, in per cent.
UNKNOWN_NOISE = 15.0
LEAST_NOISE = 3.0
ROUNDS_FOR_SPREAD = 3
Verdict = Literal["better", "worse", "same"]


class Figure(msgspec.Struct, frozen=True):
    """One figure over the rounds of a run: `values` in the order of rounds, `floors` those of the same minutes (none:
    it has no floor). `better`: whether less or more of it is."""

    unit: str
    better: Literal["less", "more"]
    values: tuple[float, ...]
    floors: tuple[float, ...] = ()

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread_percent(self) -> float:
        """From least to most, against the median."""
        return 100 * (max(self.values) - min(self.values)) / abs(self.median) if self.median else 0.0

    @property
    def floor(self) -> float:
        """Median of its floors; 0.0: none."""
        return statistics.median(self.floors) if self.floors else 0.0

    @property
    def ratio(self) -> float:
        """Against its floor, round by round, the median; 0.0 without a floor."""
        pairs = zip(self.values, self.floors, strict=False)
        ratios = [value / floor for value, floor in pairs if floor]
        return statistics.median(ratios) if ratios else 0.0

    def as_json(self) -> dict[str, Any]:
        """As it stands in the file: what is derived beside what was measured."""
        found: dict[str, Any] = {
            "unit": self.unit,
            "better": self.better,
            "median": _rounded(self.median),
            "spread_percent": round(self.spread_percent, 1),
            "values": [_rounded(value) for value in self.values],
        }
        if self.floors:
            found |= {
                "floor": _rounded(self.floor),
                "ratio": round(self.ratio, 2),
                "floors": [_rounded(value) for value in self.floors],
            }
        return found


class BenchFile(msgspec.Struct, frozen=True):
    """A file of figures; details of scenarios are left out."""

    schema: int
    headrace: str
    machine: dict[str, Any]
    rounds: int
    figures: dict[str, Figure]


class Change(msgspec.Struct, frozen=True):
    """One figure in two files. `noise_percent`: what a change has to exceed to count. `of_ratio`: judged by the ratio
    to its floor, since the machine itself was faster or slower."""

    name: str
    unit: str
    before: float
    after: float
    change_percent: float
    noise_percent: float
    of_ratio: bool
    verdict: Verdict


def read_bench_file(path: Path) -> BenchFile:
    """InvalidInput where there is none, or it is of another schema."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise InvalidInput.at("file", str(path), f"cannot be read: {error.strerror}") from error
    try:
        found = msgspec.json.decode(raw)
        if not isinstance(found, dict) or found.get("schema") != SCHEMA:
            schema = found.get("schema") if isinstance(found, dict) else None
            raise InvalidInput.at(
                "file", str(path), f"is of schema {schema}, and {SCHEMA} is read", next_step="Make it anew: make bench"
            )
        return msgspec.convert(found, BenchFile)
    except msgspec.MsgspecError as error:
        raise InvalidInput.at("file", str(path), f"is no file of figures: {error}") from error


def compare(before: BenchFile, after: BenchFile) -> list[Change]:
    """All figures that both have, those that moved most first."""
    changes = [
        _change(name, figure, after.figures[name]) for name, figure in before.figures.items() if name in after.figures
    ]
    return sorted(changes, key=lambda change: (change.verdict == "same", -abs(change.change_percent)))


def _change(name: str, before: Figure, after: Figure) -> Change:
    of_ratio = bool(before.ratio and after.ratio)
    old, new = (before.ratio, after.ratio) if of_ratio else (before.median, after.median)
    change = 100 * (new - old) / abs(old) if old else (0.0 if not new else 100.0)
    noise = max(_noise_percent(before), _noise_percent(after))
    verdict: Verdict = "same"
    if abs(change) > noise:
        verdict = "better" if (change < 0) == (after.better == LESS) else "worse"
    return Change(name, after.unit, before.median, after.median, round(change, 1), round(noise, 1), of_ratio, verdict)


def _noise_percent(figure: Figure) -> float:
    """Its own spread, where rounds tell of one."""
    if len(figure.values) < ROUNDS_FOR_SPREAD:
        return UNKNOWN_NOISE
    return max(LEAST_NOISE, figure.spread_percent)


def _rounded(value: float) -> float:
    """Four digits are more than a bench knows."""
    return float(f"{value:.4g}")
