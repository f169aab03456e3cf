"""Where scenarios put their figures: one name each, a value per round."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from headrace import __version__, compiled
from headrace.cli.bench_figures import LESS, MORE, SCHEMA, Figure


class Figures:
    """Names are `<scenario>.<profile or case>.<what>`; the same name in a later round adds a value."""

    def __init__(self) -> None:
        self._units: dict[str, tuple[str, str]] = {}
        self._values: dict[str, list[float]] = {}
        self._floors: dict[str, list[float]] = {}

    def less(self, name: str, value: float, unit: str, floor: float = 0.0) -> None:
        """A figure of which less is better; `floor`: what the machine itself takes for it, measured just now."""
        self._add(name, value, unit, LESS, floor)

    def more(self, name: str, value: float, unit: str, floor: float = 0.0) -> None:
        """A figure of which more is better."""
        self._add(name, value, unit, MORE, floor)

    def _add(self, name: str, value: float, unit: str, better: str, floor: float) -> None:
        self._units[name] = (unit, better)
        self._values.setdefault(name, []).append(float(value))
        if floor:
            self._floors.setdefault(name, []).append(float(floor))

    def all(self) -> dict[str, Figure]:
        """As they are now, in the order in which they first came."""
        return {
            name: Figure(unit, better, tuple(self._values[name]), tuple(self._floors.get(name, ())))  # type: ignore[arg-type]
            for name, (unit, better) in self._units.items()
        }


@dataclass
class BenchRun:
    """What a scenario gets. `told` prints a line of progress; `seconds` is how long a measured stretch lasts;
    `flows` how many are put to rest in scenarios with many."""

    told: Callable[[str], None]
    seconds: float = 5.0
    flows: int = 40
    figures: Figures = field(default_factory=Figures)


def machine() -> dict[str, Any]:
    """What the figures hold for."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=10)
    return {
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "code": compiled.code(),
        "system": platform.platform(),
        "commit": commit.stdout.strip(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "load_1m": round(os.getloadavg()[0], 1),
    }


def document(run: BenchRun, details: dict[str, list[Any]], rounds: int, about: dict[str, Any]) -> dict[str, Any]:
    """The whole file, see `benchmarks/README.md`."""
    return {
        "schema": SCHEMA,
        "headrace": __version__,
        "machine": about,
        "rounds": rounds,
        "seconds": run.seconds,
        "figures": {name: figure.as_json() for name, figure in run.figures.all().items()},
        "scenarios": details,
    }
