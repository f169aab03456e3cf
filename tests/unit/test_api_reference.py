"""docs/api.md is what the protos say."""

from __future__ import annotations

import re

import pytest

from tools.api_reference import PLACE, read_protos, render


def test_the_document_is_the_protos() -> None:
    assert PLACE.read_text(encoding="utf-8") == render(read_protos()), "run: python -m tools.api_reference"


def test_every_link_leads_somewhere() -> None:
    text = PLACE.read_text(encoding="utf-8")
    headings = re.findall(r"^#+ (.*)$", text, re.M)
    plain = ["".join(c for c in head.lower() if c.isalnum() or c in "-_ ").replace(" ", "-") for head in headings]
    places = {f"{name}-{plain[:at].count(name)}" if plain[:at].count(name) else name for at, name in enumerate(plain)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= places


@pytest.mark.parametrize("service", ["FlowService", "RegistryService", "DeadLetterService"])
def test_every_method_that_people_call_is_commented(service: str) -> None:
    section = PLACE.read_text(encoding="utf-8").partition(f"### {service}\n")[2].partition("\n### ")[0]
    bare = re.findall(r"^\| `(\w+)` .*\|  \|$", section, re.M)
    assert [name for name in bare if not name.startswith(("Get", "List"))] == []
