"""`make bench` writes a file that `headrace bench compare` reads: the shortest scenario, twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.cli import main as door
from headrace.cli.bench_figures import read_bench_file

ROOT = Path(__file__).parents[2]


def test_a_scenario_in_two_rounds_is_a_file_that_compares_with_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "bench.json"
    words = ["--scenario", "start", "--rounds", "2", "--output", str(output)]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    file = read_bench_file(output)
    assert {name: len(figure.values) for name, figure in file.figures.items()} == {
        "start.mesh": 2,
        "start.cold.first_answer": 2,
        "start.cached.first_answer": 2,
        "start.instance_pss": 2,
    }
    assert all(value > 0 for figure in file.figures.values() for value in figure.values)
    assert "cached.first_answer" in done.stdout
    assert door.run(["bench", "compare", str(output), str(output), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"figures": 4, "changes": []}


def test_a_scenario_that_is_not_there_is_wrong_usage_and_names_those_that_are() -> None:
    words = [sys.executable, "-m", "benchmarks", "--scenario", "speed"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "no scenario 'speed'" in done.stderr
    assert "throughput" in done.stderr
