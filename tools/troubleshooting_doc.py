"""Writes the table of causes in docs/troubleshooting.md from headrace/model/causes.py; what stands around it is written
by hand. `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from pathlib import Path

from headrace.model.causes import CAUSES, Cause
from tools.generated_files import keep

PLACE = Path(__file__).parents[1] / "docs" / "troubleshooting.md"
BEGIN = "<!-- The causes: made by tools/troubleshooting_doc.py from headrace/model/causes.py. -->"
END = "<!-- End of the causes. -->"
NAMES = {"flow": "FLOW", "step": "STEP", "deployment": "N", "pid": "PID", "receiver": "RECEIVER", "more": "N"}


def causes_table() -> str:
    """One row for each cause, most fundamental first."""
    rows = ["| what you see | cause | what it is known by | what to type |", "| --- | --- | --- | --- |"]
    for cause, rule in CAUSES.items():
        if cause is Cause.NOTHING_WRONG:
            continue
        commands = "<br>".join(f"`{command.format(**NAMES)}`" for command in rule.commands)
        rows.append(f"| {rule.symptom} | `{cause}`: {rule.meaning} | {rule.evidence} | {commands} |")
    return "\n".join(rows)


def render(text: str) -> str:
    """The document with the table as it is now."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PLACE} has no place for the causes: {BEGIN} ... {END}")
    return f"{before}{BEGIN}\n\n{causes_table()}\n\n{END}{after}"


if __name__ == "__main__":
    about = "python -m tools.troubleshooting_doc"
    sys.exit(keep(__doc__, about, lambda: {PLACE: render(PLACE.read_text(encoding="utf-8"))}))
