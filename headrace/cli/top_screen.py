"""The terminal of `headrace top`: its own screen, keys one by one, and everything as it was when it ends.

rich draws (cut to the terminal's size, in its colours); keys are read from the terminal, which is left in a mode where
Ctrl-C, Ctrl-Z and Ctrl-\\ still are what they were.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import termios
import tty
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Self

from headrace.cli import terminal
from headrace.cli.top_state import BAD, FAINT, HEAD, HEADING, PLAIN, SELECTED, Line

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

STYLES = {PLAIN: "", HEAD: "bold", HEADING: "bold", SELECTED: "reverse", BAD: "bold red", FAINT: "dim"}
NAMES = {
    b"\x1b[A": "up", b"\x1bOA": "up", b"\x1b[B": "down", b"\x1bOB": "down",
    b"\x1b[C": "right", b"\x1bOC": "right", b"\x1b[D": "left", b"\x1bOD": "left",
    b"\x1b[5~": "page-up", b"\x1b[6~": "page-down",
    b"\x1b[H": "home", b"\x1bOH": "home", b"\x1b[1~": "home", b"\x1b[F": "end", b"\x1bOF": "end", b"\x1b[4~": "end",
    b"\x1b": "esc", b"\r": "enter", b"\n": "enter", b"\x7f": "backspace", b"\x08": "backspace", b" ": "space",
}  # fmt: skip
_KEY = re.compile(rb"\x1b\[[0-9;]*[~A-Za-z]|\x1bO[A-Z]|\x1b|[\xc2-\xf4][\x80-\xbf]+|.", re.DOTALL)
LONGEST_READ = 1024
# Synchronized output: a terminal that knows it shows a frame when it is whole; others ignore it.
FRAME_BEGIN, FRAME_END = "\x1b[?2026h", "\x1b[?2026l"


def keys_in(raw: bytes) -> list[str]:
    """Names of the keys in what a terminal sent; of those without a name the character, where it is one."""
    found = []
    for match in _KEY.findall(raw):
        name = NAMES.get(match) or match.decode(errors="ignore")
        if len(name) > 1 and match not in NAMES:
            continue
        if name and (len(name) > 1 or name.isprintable()):
            found.append(name)
    return found


def is_a_screen() -> bool:
    """Whether a person sits there: both ends a terminal that can be drawn on."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


class Screen:
    """Use it as a context manager in a running loop. `on_key` gets each key; `on_change` is called when the size
    changed or the screen is back after Ctrl-Z; `on_end` when the process is told to end."""

    def __init__(
        self, on_key: Callable[[str], None], on_change: Callable[[], None], on_end: Callable[[], None]
    ) -> None:
        self._on_key, self._on_change, self._on_end = on_key, on_change, on_end
        self._input = sys.stdin.fileno()
        self._before: list[object] = []
        self._console: Console

    def __enter__(self) -> Self:
        from rich.console import Console

        environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        self._console = Console(_environ=environment, highlight=False)
        loop = asyncio.get_running_loop()
        self._before = termios.tcgetattr(self._input)
        self._take()
        loop.add_reader(self._input, self._read)
        loop.add_signal_handler(signal.SIGWINCH, self._on_change)
        loop.add_signal_handler(signal.SIGTSTP, self._stand_aside)
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._on_end)
        return self

    def __exit__(self, *_: object) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._input)
        for number in (signal.SIGWINCH, signal.SIGTSTP, signal.SIGTERM, signal.SIGHUP):
            loop.remove_signal_handler(number)
        self._give_back()

    def _take(self) -> None:
        tty.setcbreak(self._input)
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def _give_back(self) -> None:
        try:
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)
        except OSError:
            pass  # the terminal is gone
        finally:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]

    def _stand_aside(self) -> None:
        """Ctrl-Z: the shell gets its terminal, and we get it back when we go on."""
        self._give_back()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._take()
        self._on_change()

    def _read(self) -> None:
        try:
            raw = os.read(self._input, LONGEST_READ)
        except OSError:
            raw = b""
        if not raw:  # the terminal is gone
            asyncio.get_running_loop().remove_reader(self._input)
            self._on_end()
        for key in keys_in(raw):
            self._on_key(key)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines."""
        return self._console.size.width, self._console.size.height

    def draw(self, lines: Sequence[Line]) -> None:
        """Shows exactly these lines, cut to the size that the terminal has now."""
        from rich.control import Control
        from rich.text import Text

        width, height = self.size
        whole = Text("\n").join(self._styled(text, style, width) for text, style in lines[:height])
        self._console.file.write(FRAME_BEGIN)
        self._console.control(Control.home())
        self._console.print(whole, end="", no_wrap=True, overflow="crop", crop=True)
        self._console.file.write(FRAME_END)
        self._console.file.flush()

    def _styled(self, text: str, style: str, width: int) -> Text:
        from rich.text import Text

        line = Text(text, STYLES[style])
        line.truncate(width, pad=True)
        if style == PLAIN:
            for words, colour in ((terminal.GOOD, "green"), (terminal.PASSING, "yellow"), (terminal.BAD, "bold red")):
                line.highlight_regex(rf"\b({words})\b", colour)
            line.highlight_regex(r"^[A-Z]+ .*\b(ms|TRACE|SAMPLES)$", "bold")
        return line
