"""Does what a document says, and checks that what it shows is what happens."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

from tests.docs.markdown import RunCommand, WriteFile, steps_of
from tests.docs.shell import Shell

_MAKE = re.compile(r"make (\w+)")
_TARGETS = re.compile(r"^(\w+):", re.M)
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Walk:
    """One document in one folder. `renamed`: what its commands say to what they are run with (ports that are free on
    this machine), and back in their output."""

    def __init__(self, document: Path, folder: Path, environment: dict[str, str], renamed: dict[str, str]) -> None:
        self._document = document
        self._folder = folder
        self._renamed = renamed
        self._shell = Shell(folder, environment)
        self.ran = 0

    def go(self) -> None:
        """AssertionError, with file and line, where the world differs from the document."""
        try:
            for step in steps_of(self._document):
                if isinstance(step, WriteFile):
                    path = self._folder / step.path
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(step.text, encoding="utf-8")
                elif targets := _MAKE.findall(step.command):
                    self._check_targets(targets, step)
                else:
                    self._run(step)
        finally:
            self._shell.close()

    def _run(self, step: RunCommand) -> None:
        command = step.command
        for said, real in self._renamed.items():
            command = command.replace(said, real)
        status, output = self._shell.run(command)
        for said, real in self._renamed.items():
            output = output.replace(real, said)
        self.ran += 1
        output = _COLOURS.sub("", output)
        where = f"{self._document.name}:{step.line}: $ {step.command}\n"
        assert (status != 0) == step.fails, f"{where}ended with status {status}:\n{output}"
        if step.output is not None and not fits(step.output, output):
            raise AssertionError(f"{where}the document shows:\n{step.output}\nbut it printed:\n{output}")

    def _check_targets(self, targets: list[str], step: RunCommand) -> None:
        """`make` would set up all anew, and run these very tests: it is enough that it knows its targets."""
        known = _TARGETS.findall((Path(__file__).parents[2] / "Makefile").read_text(encoding="utf-8"))
        missing = sorted(set(targets) - set(known))
        assert not missing, f"{self._document.name}:{step.line}: make knows no {missing}"


def fits(shown: str, printed: str) -> bool:
    """Whether the output is what is shown, `…` standing for anything; spaces at the ends of lines do not count."""
    wanted = _trimmed(shown).replace("...", "\0").replace("…", "...")
    got = _trimmed(printed).replace("...", "\0")
    return doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)


def _trimmed(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines()) + "\n"
