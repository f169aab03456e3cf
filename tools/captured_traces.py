"""Writes into docs/observability.md what a mesh and a real Jaeger show of the orders example: `headrace trace` with its
mesh alone, the same trace as read back from Jaeger's API, and Jaeger's dependency graph.

python -m tools.captured_traces            # between the two marks of the page; Jaeger must be built (make tools)
python -m tools.captured_traces --print    # prints it
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tools.captured_page import block, run, write_between
from tools.captured_top import ORDER
from tools.jaeger import Jaeger, jaeger_server
from tools.trace_drawing import draw_graph, draw_trace

ROOT = Path(__file__).resolve().parents[1]
PLACE = ROOT / "docs" / "observability.md"
BEGIN, END = "<!-- headrace trace, made by tools/captured_traces.py -->", "<!-- end of headrace trace -->"
SPANS_OF_AN_ORDER = 29
WARM_UP = 30
LIMIT_S = 20.0

T = TypeVar("T")


def post(url: str, number: int, **change: object) -> str:
    """One order; answers its execution."""
    body = json.dumps(ORDER | {"order_id": f"O-{number}"} | change).encode()
    try:
        answer = urllib.request.urlopen(urllib.request.Request(url, body, {"content-type": "application/json"}))
    except urllib.error.HTTPError as refused:
        answer = refused
    return str(answer.headers["headrace-execution"])


def awaited(check: Callable[[], T | None]) -> T:
    """The first answer that is one."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = check()
        if found:
            return found
        time.sleep(0.1)
    raise TimeoutError("not within the limit")


def captured(jaeger: Jaeger) -> str:
    """The text between the marks."""
    run("up", "--detach", "--profile", "fast", "--otlp", jaeger.otlp)
    try:
        run("flow", "apply", "--run", str(ROOT / "examples" / "orders" / "flow.yaml"))
        url = json.loads(run("flow", "status", "orders", "--json"))["webhook_url"]
        for number in range(WARM_UP):
            post(url, number)
        good, refused = post(url, WARM_UP), post(url, WARM_UP + 1, lines=[{"sku": "NO-SUCH", "quantity": 1}])
        spans = awaited(lambda: found if len(found := jaeger.trace(good)) >= SPANS_OF_AN_ORDER else None)
        shown, wrong, listed = run("trace", good), run("trace", refused), run("trace", "--limit", "3")
    finally:
        run("down")
    return "\n\n".join(
        [
            block(f"headrace trace {good}", public(shown, jaeger)),
            "An order that was refused, and the newest executions:",
            block(f"headrace trace {refused}", public(wrong, jaeger)),
            block("headrace trace --limit 3", listed),
            "The first one as Jaeger tells it, and its dependency graph:",
            block(f"python -m tools.trace_drawing {good}", draw_trace(spans)),
            block("python -m tools.trace_drawing graph", draw_graph(jaeger.dependencies())),
        ]
    )


def public(text: str, jaeger: Jaeger) -> str:
    """With Jaeger's usual port."""
    return text.replace(jaeger.pages, "http://127.0.0.1:16686")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--print", action="store_true", help="print it, write nothing")
    only_print = parser.parse_args().print
    with tempfile.TemporaryDirectory(prefix="headrace-trace-") as folder, jaeger_server() as jaeger:
        os.environ |= {"HEADRACE_DATA": f"{folder}/data", "NO_COLOR": "1", "HEADRACE_JAEGER": jaeger.pages}
        text = captured(jaeger)
    if only_print:
        print(text)
    else:
        write_between(PLACE, BEGIN, END, text)


if __name__ == "__main__":
    main()
