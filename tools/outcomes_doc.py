"""Writes docs/outcomes.md from the tables that the sidecar goes by; `--check` only says whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from headrace.model.flow_spec import DEFAULT_TIMEOUT_S, RetryPolicy
from headrace.model.retry_codes import OUTSIDE_THE_POLICY
from services.sidecar.domain.delivery import OUTCOMES, Again
from services.sidecar.domain.output_answers import ANSWERS
from tools.generated_files import keep

PLACE = Path(__file__).parents[1] / "docs" / "outcomes.md"
NOTES = """
- A message ends in exactly one of: processed, dead-lettered, answered as a rejection; its acknowledgement is last.
- What a failed attempt emitted or replied is dropped. Outputs and the reply leave when the function has ended well:
  first all outputs are stored, then the reply is sent, then the input is acknowledged.
- Given up means: dead-lettered with original, attempts and pins (with `on_error: suspend-flow` it waits instead, and
  the flow is suspended; with an error step that one gets it, and answers), and a waiting caller gets the code and
  status. With a status from 400 to 499 and a caller who waits, the answer is all there is to it (counted as rejected).
- A component's own error keeps its code and message; its status (400 to 599, else 500) is what a waiting caller gets.
- Delays are waited for in the sidecar, which holds the message and extends its deadline at the broker; each takes one
  of the step's `prefetch`. When the sidecar dies or is restarted, what it held is delivered again at once and its
  attempts, rebounds and delays begin anew: deaths of the mesh's own processes never use up a message's attempts, and a
  component that asked for a later time is asked again, and can ask again.
"""


def render() -> str:
    """The whole document."""
    calls = [
        (
            f"`{ending}`",
            rule.meaning,
            "outputs, reply, acknowledgement" if rule.problem is None else _tried(rule.again),
            rule.counts.value,
            f"`{rule.problem.code}`, {rule.problem.status}" if rule.problem else "-",
        )
        for ending, rule in OUTCOMES.items()
    ]
    outputs = [
        (f"`{answer}`", rule.meaning, rule.fate.value, f"`{rule.counter}`" if rule.counter else "-",
         f"`{rule.code}`" if rule.code else "-")
        for answer, rule in ANSWERS.items()
    ]  # fmt: skip
    codes = [(f"`{code}`", why) for code, why in OUTSIDE_THE_POLICY.items()]
    return "\n".join(
        [
            "# Outcomes",
            "",
            "<!-- Made by tools/outcomes_doc.py from the tables in services/sidecar/domain; do not edit by hand. -->",
            "",
            "## How a call ends, and what follows",
            "",
            *_table(("ending", "how it comes about", "then", "counted as", "given up with"), calls),
            "",
            _defaults(),
            NOTES,
            "## What the broker says to an output",
            "",
            *_table(("answer", "meaning", "then", "counter", "dead letter"), outputs),
            "",
            "## Codes that `retry.on` cannot name",
            "",
            *_table(("code", "why"), codes),
            "",
        ]
    )


def _defaults() -> str:
    retry = RetryPolicy()
    words = f"attempts: {retry.attempts}, backoff: {retry.backoff_s * 1000:g}ms, max_delay: {retry.max_delay_s:g}s"
    return (
        f"Without a word in the flow file: `timeout: {DEFAULT_TIMEOUT_S:g}s`, "
        f"`retry: {{{words}, jitter: {retry.jitter:g}}}`, no `on`. "
        "`headrace flow status FLOW --policy` shows what holds for each step."
    )


def _tried(again: Again) -> str:
    return "given up" if again is Again.NEVER else f"tried again {again.value}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows)]


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.outcomes_doc", lambda: {PLACE: render()}))
