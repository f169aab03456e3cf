"""Writes headrace/schemas/*.schema.json from what the readers of these files go by; `--check` only compares."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from headrace.wire.file_schemas import COMPONENT, FLOW, file_schema
from tools.generated_files import keep

FOLDER = Path(__file__).parents[1] / "headrace" / "schemas"


def place(kind: str) -> Path:
    return FOLDER / f"{kind}.schema.json"


def render(kind: str) -> str:
    return json.dumps(file_schema(kind), indent=2, ensure_ascii=False) + "\n"


def render_all() -> dict[Path, str]:
    return {place(kind): render(kind) for kind in (FLOW, COMPONENT)}


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.file_schemas", render_all))
