"""What only a terminal gets: colour on what is printed, and a sign of life while something takes long.

In a pipe, with NO_COLOR or TERM=dumb, the text is the same without colour; a pipe gets no sign of life either.
rich is imported only where something is to be coloured or has taken half a second.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

QUIET_S = 0.5
GOOD = "RUNNING|ACTIVE|UP|READY|OK"
PASSING = "STARTING|STOPPING|SUSPENDING|SUSPENDED|DRAINING|PREPARING|WARM|RESTARTING|SHUTTING_DOWN|SLEEPING|WARNING"
BAD = "FAILED|ERROR"
_PATTERNS = (
    r"(?m)^ *[A-Z][A-Z ()/]+$",
    rf"\b({GOOD})\b",
    rf"\b({PASSING})\b",
    rf"\b({BAD})\b|(?m:^problem:)",
)


def show_text(text: str, *, flush: bool = False) -> None:
    """Prints text; on a terminal with headings in bold and states in colour."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        print(text, flush=flush)
        return
    from rich.console import Console
    from rich.text import Text

    styled = Text(text)
    for pattern, style in zip(_PATTERNS, ("bold", "green", "yellow", "bold red"), strict=True):
        styled.highlight_regex(pattern, style)
    Console().print(styled, soft_wrap=True)


@contextlib.contextmanager
def waiting(words: str) -> Iterator[None]:
    """A turning sign and `words` on standard error, from half a second on until the end; only on a terminal."""
    if not words or not sys.stderr.isatty() or os.environ.get("TERM") == "dumb":
        yield
        return
    done = threading.Event()

    def turn() -> None:
        if done.wait(QUIET_S):
            return
        from rich.console import Console

        with Console(stderr=True).status(words):
            done.wait()

    thread = threading.Thread(target=turn, name="headrace-waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
