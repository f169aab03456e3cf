"""The commands that docs/dead-letters.md shows exist, with those options."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.main import get_command

from headrace.cli.dead_letters import app

GUIDE = Path(__file__).parents[2] / "docs" / "dead-letters.md"
COMMANDS = re.findall(r"^headrace dead-letters (.*?)\s*(?:#.*)?$", GUIDE.read_text(encoding="utf-8"), re.M)


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_of_the_guide_is_understood(line: str) -> None:
    name, *arguments = shlex.split(line)
    command = get_command(app).commands[name]  # type: ignore[attr-defined]
    context = command.make_context(name, arguments)
    assert context.params["as_json"] is False


def test_the_guide_shows_every_command() -> None:
    assert {line.split()[0] for line in COMMANDS} == set(get_command(app).commands)  # type: ignore[attr-defined]
