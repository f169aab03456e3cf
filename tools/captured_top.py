"""Writes what `headrace top` shows into docs/observability.md: a mesh with the orders example under load, captured.

python -m tools.captured_top            # between the two marks of the page
python -m tools.captured_top --print    # prints it
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

from tools.terminal_session import TerminalSession

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "docs" / "observability.md"
BEGIN, END = "<!-- headrace top, made by tools/captured_top.py -->", "<!-- end of headrace top -->"
HEADRACE = [sys.executable, "-m", "headrace.cli.main"]
RATE = 60.0
WARM_S = 12.0
ORDER = {
    "order_id": "", "customer": {"id": "C-100", "name": "Ada"}, "currency": "EUR", "country": "DE",
    "lines": [{"sku": "PUMP-HX2", "quantity": 2}],
}  # fmt: skip


class Load:
    """Orders at a steady rate, one after the other, until it is ended."""

    def __init__(self, url: str) -> None:
        self._url = urlsplit(url)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="orders")

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._url.netloc, timeout=30)
        begin, number = time.monotonic(), 0
        while not self._ended.wait(max(0.0, begin + number / RATE - time.monotonic())):
            number += 1
            connection.request("POST", self._url.path, json.dumps(ORDER | {"order_id": f"O-{number}"}))
            connection.getresponse().read()
        connection.close()


def headrace(*arguments: str) -> str:
    """Runs a command, which must succeed; its standard output."""
    done = subprocess.run([*HEADRACE, *arguments], capture_output=True, text=True, timeout=120)
    if done.returncode:
        sys.exit(f"captured_top: headrace {' '.join(arguments)} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout


def block(command: str, lines: list[str]) -> str:
    """A command and what it shows."""
    while lines and not lines[-1]:
        lines.pop()
    return "\n".join(["```text", f"$ {command}", *lines, "```"])


def without_gap(frame: list[str]) -> list[str]:
    """A screen without the empty lines above its last one."""
    *body, foot = frame
    while body and not body[-1]:
        body.pop()
    return [*body, foot]


def captured() -> str:
    """The text between the marks."""
    headrace("up", "--detach", "--profile", "fast")
    try:
        headrace("flow", "apply", "--run", str(ROOT / "examples" / "orders" / "flow.yaml"))
        url = json.loads(headrace("flow", "status", "orders", "--json"))["webhook_url"]
        with Load(url), TerminalSession([*HEADRACE, "top", "orders"], columns=118, lines=26) as session:
            session.until("RUNNING")
            time.sleep(WARM_S)
            screen = session.until(r"last 10 s")
            session.send("jj\r")
            opened = session.until("^component ")
            once = headrace("top", "orders", "--once", "--sort", "p99").splitlines()
            session.send("q")
            session.wait()
    finally:
        headrace("down")
    return "\n\n".join(
        [
            block("headrace top orders", without_gap(screen)),
            "The step `price`, opened with ⏎:",
            block("headrace top orders", without_gap(opened)),
            "In a pipe, or with `--once`:",
            block("headrace top orders --once --sort p99", once),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--print", action="store_true", help="print it, write nothing")
    only_print = parser.parse_args().print
    with tempfile.TemporaryDirectory(prefix="headrace-top-") as folder:
        os.environ |= {"HEADRACE_DATA": f"{folder}/data", "NO_COLOR": "1"}
        text = captured()
    if only_print:
        print(text)
        return
    page = PLACE.read_text(encoding="utf-8")
    before, mark, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        sys.exit(f"captured_top: {PLACE} has no line {BEGIN!r} or {END!r}")
    PLACE.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
