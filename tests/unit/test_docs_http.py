"""docs/http.md names every code with which a gateway refuses, and its status."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_table_has_every_refusal_with_its_status() -> None:
    source = (ROOT / "services" / "gateway" / "domain" / "refusals.py").read_text(encoding="utf-8")
    made = {
        (call.args[0].value, call.args[1].value)
        for call in ast.walk(ast.parse(source))
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") == "Refusal"
        if isinstance(call.args[0], ast.Constant) and isinstance(call.args[1], ast.Constant)
    }
    rows = re.findall(r"^\| (\d{3}) \| ([^|]*) \|", (ROOT / "docs" / "http.md").read_text(encoding="utf-8"), re.M)
    told = {(int(status), code) for status, codes in rows for code in re.findall(r"`(\w+)`", codes)}
    assert len(made) >= 20
    assert told == made
