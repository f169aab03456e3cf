"""Writes docs/first-five-minutes.md: a transcript of somebody's first five minutes, each step done for real and timed.

    python tools/first_five_minutes.py                 # clones this repository, sets it up, walks, writes the page
    python tools/first_five_minutes.py --here          # with the environment that runs this; prints the page

Python's standard library only, since a machine may have nothing else before `make setup`.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "docs" / "first-five-minutes.md"
LIMIT_S = 120.0
HEAD = """# The first five minutes

<!-- Made by tools/first_five_minutes.py on a fresh clone; do not edit by hand. -->

A transcript: every command was run as it stands here, and took the time that is beside it.
"""


@dataclass
class Transcript:
    """The page as it grows; the walk's own clock, which only counts what the machine did."""

    home: Path
    environment: dict[str, str]
    lines: list[str] = field(default_factory=lambda: HEAD.splitlines())
    steps: list[tuple[str, float]] = field(default_factory=list)

    def heading(self, text: str, prose: str = "") -> None:
        self.lines += ["", f"## {text}", *(["", prose] if prose else [])]

    def say(self, prose: str) -> None:
        self.lines += ["", prose]

    def run(self, command: str, what: str, *, shown: str = "") -> str:
        """Runs a command to its end; it must succeed. `shown` instead of it where it names this machine."""
        begin = time.monotonic()
        done = subprocess.run(
            ["bash", "-c", command], cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=LIMIT_S * 5,
        )  # fmt: skip
        took = time.monotonic() - begin
        self.show(shown or command, done.stdout, what, took)
        if done.returncode != 0:
            sys.exit(f"first_five_minutes: {command} ended with status {done.returncode}:\n{done.stdout}")
        return done.stdout

    def show(self, command: str, output: str, what: str, took_s: float) -> None:
        self.steps.append((what, took_s))
        text = output.replace(str(self.home), "~").rstrip("\n")
        self.lines += ["", f"{what} ({took_s:.1f} s):", "", "```text", f"$ {command}", *text.splitlines(), "```"]

    def page(self, set_up: int, first_answer: int) -> str:
        """`set_up` steps prepare the machine; with step number `first_answer` the first answer is there."""
        rows = [f"| {what} | {took:.1f} s |" for what, took in self.steps]
        answer = sum(took for _, took in self.steps[set_up : first_answer + 1])
        self.heading(
            "Times",
            f"From a machine that is set up to the first answer: **{answer:.1f} s** of the machine's time "
            f"({os.cpu_count()} cores, load average meanwhile {os.getloadavg()[0]:.1f}).",
        )
        return "\n".join([*self.lines, "", "| step | took |", "|---|---|", *rows, ""])


class Dev:
    """`headrace dev` in a second terminal."""

    def __init__(self, transcript: Transcript, command: str) -> None:
        self._transcript = transcript
        self._shown = 0
        self._output = transcript.home / "dev.out"
        with open(self._output, "wb") as out:
            self._process = subprocess.Popen(
                command.split(), cwd=transcript.home, env=transcript.environment, stdin=subprocess.DEVNULL,
                stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip

    def until(self, pattern: str) -> str:
        """What it has said since the last time, once that fits the pattern."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            said = self._output.read_text(encoding="utf-8", errors="replace")[self._shown :]
            if re.search(pattern, said) and said.endswith("\n"):
                self._shown += len(said)
                return said
            if self._process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"first_five_minutes: `headrace dev` did not say {pattern!r}, but:\n{said}")
            time.sleep(0.02)

    def interrupt(self) -> str:
        """Ctrl-C; what it says at its end."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(LIMIT_S)
        return self._output.read_text(encoding="utf-8", errors="replace")[self._shown :]

    def kill(self) -> None:
        """Whatever went wrong: nothing is left behind."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()


def set_up(transcript: Transcript) -> None:
    """A clone and its environment."""
    transcript.heading("Set-up", "Python 3.11 or newer, git and make are there.")
    url = os.environ.get("HEADRACE_CLONE_URL", str(ROOT))
    transcript.run(f"git clone -q {url} headrace", "clone", shown="git clone -q URL headrace")
    transcript.run("make -s -C headrace setup", "set up the environment")
    transcript.environment["PATH"] = (
        f"{transcript.home / 'headrace' / '.venv' / 'bin'}:{transcript.environment['PATH']}"
    )
    transcript.say("`headrace` is on the PATH (`source headrace/.venv/bin/activate`).")


def walk(transcript: Transcript) -> int:
    """From nothing to a flow that was edited, broken and mended; answers which step was the first answer."""
    transcript.heading("A first component")
    transcript.run("headrace component new greet", "make a component")
    transcript.run("cat greet/component.py", "look at it")
    transcript.heading("Run it", "In a second terminal; it stays there and runs each save.")
    begin = time.monotonic()
    dev = Dev(transcript, "headrace dev greet")
    try:
        said = dev.until(r"curl .*\n")
        transcript.show("headrace dev greet", said, "start a mesh and the flow", time.monotonic() - begin)
        url = re.findall(r"http://[^\s']+", said)[-1]
        ask = f'curl -s -d \'{{"name": "Ada"}}\' {url}'
        transcript.run(ask, "first answer")
        first_answer = len(transcript.steps) - 1
        dev.until("greeting")
        transcript.heading("Test it", "Its test needs no mesh.")
        transcript.run("python -m pytest -q greet", "its test")

        transcript.heading("Change it")
        edited(transcript, dev, "sed -i 's/Hello, /Good morning, /' greet/component.py", "deployment 2",
               "save until the new code runs")  # fmt: skip
        transcript.run(ask, "answer by new code")
        transcript.heading("Break it", "What is wrong does not run; what ran, runs on.")
        edited(transcript, dev, "sed -i 's/class Answer/clas Answer/' greet/component.py", "SyntaxError",
               "save until the error is shown")  # fmt: skip
        transcript.run(ask, "answer meanwhile")
        edited(transcript, dev, "sed -i 's/clas Answer/class Answer/' greet/component.py", r"saved[^\n]*\n.*\n",
               "save until it is well again")  # fmt: skip
        transcript.heading("Look around")
        transcript.run("headrace status", "what runs")
        transcript.run("headrace flow status greet", "the flow")
        transcript.run("headrace logs greet --lines 3", "what the component wrote")
        transcript.run("headrace flow history greet", "what happened")
        transcript.heading("End", "Ctrl-C in the second terminal ends the flow and the mesh.")
        begin = time.monotonic()
        transcript.show("^C", dev.interrupt(), "stop", time.monotonic() - begin)
    finally:
        dev.kill()
    return first_answer


def edited(transcript: Transcript, dev: Dev, command: str, pattern: str, what: str) -> None:
    """An edit, shown with what `headrace dev` said to it."""
    begin = time.monotonic()
    subprocess.run(["bash", "-c", command], cwd=transcript.home, check=True)
    said = dev.until(pattern)
    transcript.show(command, said, what, time.monotonic() - begin)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--here", action="store_true", help="no clone, no set-up; print the page instead of writing it")
    here = parser.parse_args().here
    with tempfile.TemporaryDirectory(prefix="headrace-five-") as folder:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
        environment |= {"HOME": folder, "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1"}
        environment["PYTHONWARNINGS"] = "ignore::DeprecationWarning"  # of pytest's plugins in this environment
        transcript = Transcript(Path(folder), environment)
        if here:
            environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        else:
            set_up(transcript)
        first = len(transcript.steps)
        page = transcript.page(first, walk(transcript))
    if here:
        print(page)
    else:
        PLACE.write_text(page, encoding="utf-8")
    for what, took in transcript.steps:
        print(f"{took:7.1f} s  {what}", file=sys.stderr)


if __name__ == "__main__":
    main()
