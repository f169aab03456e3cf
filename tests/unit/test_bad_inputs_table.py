"""docs/errors.md says what the table of bad inputs says, and the table is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bad_inputs.row import Row
from tests.bad_inputs.table import SECTIONS
from tools.errors_doc import PLACE, render

ROOT = Path(__file__).parents[2]
ROWS = [row for section in SECTIONS for row in section.rows]


def test_the_document_is_the_table() -> None:
    assert PLACE.read_text() == render(), "run: python -m tools.errors_doc"


def test_each_row_stands_once_and_is_tried() -> None:
    names = [row.id for row in ROWS]
    assert len(set(names)) == len(names)
    assert [row.id for row in ROWS if row.give is None and not row.shown_by and row.id != "no-file"] == []


@pytest.mark.parametrize("row", [row for row in ROWS if row.shown_by], ids=lambda row: row.id)
def test_what_is_tried_elsewhere_is_tried_there(row: Row) -> None:
    file, _, name = row.shown_by.partition("::")
    assert re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)


@pytest.mark.parametrize("row", [row for row in ROWS if re.fullmatch("[A-Z_]+", row.reason)], ids=lambda row: row.id)
def test_a_reason_is_one_of_the_product(row: Row) -> None:
    assert row.reason in _reasons()


def _reasons(found: set[str] = set()) -> set[str]:  # noqa: B006 - filled once
    if not found:
        for folder in ("headrace", "services"):
            for file in (ROOT / folder).rglob("*.py"):
                if "api" not in file.parts:
                    found.update(re.findall(r'"([A-Z][A-Z_]{3,})"', file.read_text()))
        found.update({"COMPONENT_EXITED_IN_INIT", "COMPONENT_EXITED_IN_VERIFY", "-"})
    return found
