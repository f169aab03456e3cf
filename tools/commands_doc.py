"""Makes docs/commands.md from the commands themselves: `python -m tools.commands_doc`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from headrace.cli import main
from headrace.cli.examples import EXAMPLES
from tools.generated_files import keep

PLACE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
HEAD = """\
# Commands

Made from `headrace --help` by `tools/commands_doc.py`; a test keeps it so.

{epilog}

- `rpc` ends with 64 and the status code of the call that failed (69: not found), as grpcurl does; `flow diff
  --exit-code` with 1 where something differs; `why` with 4 where something stalls or slows the flow; `up`, `dev`
  and `top` on a terminal with 0 at Ctrl-C, which is how they end.
- `--json` prints one JSON object on standard output (commands that follow print one a line); an error is
  `{{"error": {{"reason", "message", "next_step", "violations"}}}}` on standard error.
- `--address`, `--data` and `$HEADRACE_ADDRESS`, `$HEADRACE_DATA` say which mesh; every command that asks one has them.
- On a terminal states are coloured and what takes longer than half a second shows that it is alive; not in a pipe, nor
  with `NO_COLOR` or `TERM=dumb`. `HEADRACE_TRACEBACK=1` shows an unexpected error whole.
- Completion of commands, options, flows and components for bash, zsh and fish: see [completion](#headrace-completion).
"""
# Told once, above.
EVERYWHERE = {"--address", "--data", "--json", "--help"}


def every_command() -> Iterator[tuple[str, Any]]:
    """Path and command, groups left out."""
    root = main.make_command()
    for name in main.COMMANDS:
        found = root.resolve_command(root.make_context("headrace", [name], resilient_parsing=True), [name])[1]
        below = getattr(found, "commands", None)
        yield from ((f"{name} {sub}", command) for sub, command in below.items()) if below else [(name, found)]


def render() -> str:
    """The whole document."""
    parts = [HEAD.format(epilog=main.EPILOG)]
    parts += [_section(path, command) for path, command in every_command()]
    return "\n".join(parts)


def _section(path: str, command: Any) -> str:
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and one.opts[0] not in EVERYWHERE]
    lines = [f"## headrace {path}", "", inspect.cleandoc(command.help or ""), "", "```"]
    lines += [*EXAMPLES[path], "```", ""]
    rows = [(f"`{_argument(one)}`", one.help or "") for one in arguments]
    rows += [(f"`{', '.join([*one.opts, *one.secondary_opts])}`", one.help or "") for one in options]
    if rows:
        lines += ["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in rows), ""]
    return "\n".join(lines)


def _argument(argument: Any) -> str:
    return str(argument.metavar or argument.name).upper().strip("[]").replace("|", " or ")


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.commands_doc", lambda: {PLACE: render()}))
