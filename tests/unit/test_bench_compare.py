"""What `headrace bench compare` says of two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli import main as door
from headrace.cli.bench_figures import LESS, MORE, SCHEMA, Figure, compare, read_bench_file


def written(folder: Path, name: str, figures: dict[str, Figure], rounds: int = 3) -> Path:
    document: dict[str, Any] = {
        "schema": SCHEMA,
        "headrace": "0",
        "machine": {"commit": name, "cores": 2, "time": "now"},
        "rounds": rounds,
        "figures": {figure: value.as_json() for figure, value in figures.items()},
        "scenarios": {"left": "out"},
    }
    path = folder / f"{name}.json"
    path.write_text(json.dumps(document))
    return path


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (Figure("us", LESS, (100, 101, 99)), Figure("us", LESS, (80, 81, 79)), "better"),
        (Figure("us", LESS, (100, 101, 99)), Figure("us", LESS, (120, 121, 119)), "worse"),
        (Figure("/s", MORE, (100, 101, 99)), Figure("/s", MORE, (120, 121, 119)), "better"),
        (Figure("us", LESS, (100, 130, 90)), Figure("us", LESS, (80, 81, 79)), "same"),  # within its own spread
        (Figure("us", LESS, (100,)), Figure("us", LESS, (90,)), "same"),  # one round says little
        (Figure("us", LESS, (100,)), Figure("us", LESS, (50,)), "better"),
        # the machine became twice as fast, and nothing else did
        (Figure("us", LESS, (100, 100, 100), (50, 50, 50)), Figure("us", LESS, (50, 50, 50), (25, 25, 25)), "same"),
        (Figure("us", LESS, (0, 0, 0)), Figure("us", LESS, (0, 0, 0)), "same"),
    ],
)
def test_what_counts_as_moved(before: Figure, after: Figure, verdict: str, tmp_path: Path) -> None:
    old, new = (read_bench_file(written(tmp_path, name, {"f": one})) for name, one in (("a", before), ("b", after)))
    assert [change.verdict for change in compare(old, new)] == [verdict]


@given(values=st.lists(st.floats(1, 1e6), min_size=1, max_size=5))
def test_a_file_did_not_move_against_itself(values: list[float]) -> None:
    figure = Figure("us", LESS, tuple(values))
    again = Figure(**{key: value for key, value in figure.as_json().items() if key in ("unit", "better", "values")})
    assert again.median == pytest.approx(figure.median, rel=1e-3)


def test_the_command_shows_what_moved_and_for_programs_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = Figure("us", LESS, (100, 101, 99)), Figure("us", LESS, (50, 51, 49))
    files = [
        str(written(tmp_path, "a", {"hop": slow, "rest": slow, "gone": slow})),
        str(written(tmp_path, "b", {"hop": fast, "rest": slow, "new": slow})),
    ]
    assert door.run(["bench", "compare", *files]) == 0
    out = capsys.readouterr().out
    assert "hop     100  50  us    -50 %" in out
    assert "2 figures in both; 1 did not move beyond noise" in out
    assert "rest" not in out
    assert door.run(["bench", "compare", *files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(change["name"], change["verdict"]) for change in found["changes"]] == [("hop", "better")]


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1}', "[]", '{"schema": 2, "figures": 3}'])
def test_what_is_no_such_file_is_refused_by_name(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "some.json"
    path.write_text(text)
    assert door.run(["bench", "compare", str(path), str(path)]) == 1
    assert str(path) in capsys.readouterr().err
