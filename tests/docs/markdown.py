"""What a Markdown document tells its reader to do, in order: files to write and commands to run.

- A block whose first line is `# some/file.yaml` is that file.
- In a `console` block a line with `$ ` is a command (`> ` goes on with it); what follows is what it prints, `…` for
  whatever varies, any number of lines too. Without such lines the output may be anything. `console fails`: every
  command of the block ends with another exit status than 0.
- A `sh` block is one command, and prints whatever it prints.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

_FILE = re.compile(r"# ([\w./-]+\.\w+)$")


@dataclass(frozen=True)
class WriteFile:
    path: str
    text: str
    line: int


@dataclass(frozen=True)
class RunCommand:
    """`output` is None where the document does not show it."""

    command: str
    output: str | None
    line: int
    fails: bool = False


def steps_of(document: Path) -> list[WriteFile | RunCommand]:
    """Lines count from 1."""
    found: list[WriteFile | RunCommand] = []
    for token in MarkdownIt().parse(document.read_text(encoding="utf-8")):
        if token.type != "fence" or token.map is None:
            continue
        language, _, rest = token.info.strip().partition(" ")
        line = token.map[0] + 2
        named = _FILE.match(token.content.partition("\n")[0])
        if language == "sh":
            found.append(RunCommand(token.content, None, line))
        elif language == "console":
            found += _session(token.content, line, fails=rest == "fails")
        elif named:
            found.append(WriteFile(named[1], token.content, line))
    return found


def _session(text: str, first_line: int, *, fails: bool) -> Iterator[RunCommand]:
    command, output, line = "", [], 0
    for number, shown in enumerate(text.splitlines()):
        if shown.startswith("$ "):
            if command:
                yield RunCommand(command, "\n".join(output) or None, line, fails)
            command, output, line = shown[2:], [], first_line + number
        elif shown.startswith("> ") and not output:
            command += "\n" + shown[2:]
        else:
            output.append(shown)
    if command:
        yield RunCommand(command, "\n".join(output) or None, line, fails)
