"""What a call prints: each line becomes a log line of that call. Outside of calls nothing is changed."""

from __future__ import annotations

import threading
from typing import Any, TextIO

from headrace.sdk.context import _CURRENT, Context
from headrace.sdk.log import line_text

# What is printed without an end of line is passed on at this length.
MAX_PARTIAL = 8_192
MAX_CALLS = 1_000


class PrintedLines:
    """Stands for standard output. Lines that are JSON objects already pass as they are."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._partial: dict[int, str] = {}

    def write(self, text: str) -> int:
        call = _CURRENT.get(None)
        if call is None or (text.startswith("{") and text.endswith("\n")):
            return self._out.write(text)
        with self._lock:
            *lines, rest = (self._partial.pop(call.call, "") + text).split("\n")
            if len(rest) > MAX_PARTIAL or len(self._partial) >= MAX_CALLS:
                lines, rest = [*lines, rest], ""
            if rest:
                self._partial[call.call] = rest
        for line in lines:
            self._line(line, call)
        return len(text)

    def _line(self, line: str, call: Context) -> None:
        if line.startswith("{") or not line.strip():
            self._out.write(f"{line}\n")
        else:
            self._out.write(line_text({"level": "info", "message": line, **call.log.ids()}) + "\n")

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._out, name)
