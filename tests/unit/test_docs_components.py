"""The component and the test that docs/components.md shows work as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[2] / "docs" / "components.md"


def block(containing: str) -> str:
    found: list[str] = re.findall(r"```\w+\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.S)
    return next(text for text in found if containing in text)


def test_the_first_component_and_its_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "greet"
    folder.mkdir()
    (folder / "component.yaml").write_text(block("# component.yaml"))
    (folder / "component.py").write_text(block("# component.py"))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(block("def test_greet"), "guide", "exec"), names)
    test = names["test_greet"]
    assert callable(test)
    test()
