"""README and the pages on speed quote the newest bench."""

from __future__ import annotations

from tools.bench_tables import PLACES, TARGETS, newest, render


def test_tables_are_those_of_the_newest_run() -> None:
    rendered = render()
    assert set(rendered) == set(PLACES)
    stale = [place.name for place, text in rendered.items() if place.read_text(encoding="utf-8") != text]
    assert stale == [], "run: python -m tools.bench_tables"


def test_every_target_and_every_cell_was_measured() -> None:
    _, file = newest()
    assert [target.figure for target in TARGETS if target.figure not in file.figures] == []
    assert not [place.name for place, text in render().items() if "not measured" in text]
