"""Writes headrace/schemas/*.schema.json from what the readers of these files go by; `--check` only compares."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from headrace.wire.file_schemas import COMPONENT, FLOW, file_schema

FOLDER = Path(__file__).parents[1] / "headrace" / "schemas"


def place(kind: str) -> Path:
    return FOLDER / f"{kind}.schema.json"


def render(kind: str) -> str:
    return json.dumps(file_schema(kind), indent=2, ensure_ascii=False) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file is not up to date")
    check = parser.parse_args().check
    stale = [kind for kind in (FLOW, COMPONENT) if not place(kind).exists() or place(kind).read_text() != render(kind)]
    if check and stale:
        print(f"not up to date: {', '.join(stale)}; run: python tools/file_schemas.py", file=sys.stderr)
        return 1
    if not check:
        for kind in stale:
            place(kind).write_text(render(kind))
    return 0


if __name__ == "__main__":
    sys.exit(main())
