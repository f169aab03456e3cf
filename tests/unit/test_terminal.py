"""Colour and signs of life: on a terminal only, and the text is the same without them."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Mapping

import pytest

SHOW = "from headrace.cli.terminal import show_text; show_text('FLOW    STATE\\norders  RUNNING\\nsums  FAILED')"
WAIT = """
import time
from headrace.cli.terminal import waiting
with waiting('doing it'):
    time.sleep(%s)  # tidy: pace
print('done')
"""
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(code: str, environment: Mapping[str, str] | None = None) -> str:
    """What a person sees whose terminal runs this."""
    main, side = pty.openpty()
    settings = {"TERM": "xterm-256color", "COLUMNS": "40", **(environment or {})}
    shown = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
    try:
        with subprocess.Popen([sys.executable, "-c", code], stdout=side, stderr=side, env=shown | settings) as process:
            os.close(side)
            seen = b""
            try:
                while piece := os.read(main, 65536):
                    seen += piece
            except OSError:  # EIO: the other side is closed
                pass
            assert process.wait(20) == 0, seen
    finally:
        os.close(main)
    return seen.decode().replace("\r\n", "\n")


def test_states_have_colours_on_a_terminal_and_the_text_stays() -> None:
    seen = on_terminal(SHOW)
    assert re.search(r"\x1b\[32mRUNNING", seen)
    assert re.search(r"\x1b\[1;31mFAILED", seen)
    assert ESCAPES.sub("", seen) == "FLOW    STATE\norders  RUNNING\nsums  FAILED\n"


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_who_wants_no_colour_gets_none(environment: dict[str, str]) -> None:
    assert "\x1b" not in on_terminal(SHOW, environment)


def test_a_pipe_gets_plain_text_and_no_sign_of_life() -> None:
    for code, expected in ((SHOW, "FLOW    STATE\norders  RUNNING\nsums  FAILED\n"), (WAIT % 0.7, "done\n")):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
        assert (done.stdout, done.stderr) == (expected, "")


def test_what_takes_long_shows_that_it_is_alive() -> None:
    assert "doing it" in on_terminal(WAIT % 0.9)
    assert on_terminal(WAIT % 0.01) == "done\n"
