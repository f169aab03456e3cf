"""The causes in docs/troubleshooting.md are those of the table, and what they say to type exists."""

from __future__ import annotations

import re

from headrace.cli.main import COMMANDS
from headrace.model.causes import CAUSES
from tools.troubleshooting_doc import PLACE, render


def test_the_table_in_the_document_is_the_table() -> None:
    text = PLACE.read_text(encoding="utf-8")
    assert text == render(text), "run: python -m tools.troubleshooting_doc"


def test_what_is_to_be_typed_are_commands_that_exist() -> None:
    typed = {command for rule in CAUSES.values() for command in rule.commands}
    named = {found[1] for command in typed if (found := re.match(r"headrace ([a-z-]+)", command))}
    assert named <= set(COMMANDS)
    assert {command.split()[0] for command in typed} == {"headrace", "df", "kill", "ps", "date", "timedatectl"}
