"""A trace and the dependency graph as Jaeger's API tells them, drawn as text.

python -m tools.trace_drawing 9f86d081884c7d659a2feaa0c55ad015      # a trace
python -m tools.trace_drawing graph                                 # who calls whom, of the last hour
python -m tools.trace_drawing graph --jaeger http://127.0.0.1:16686
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from headrace.cli.tables import table
from tools.jaeger import Jaeger, Ports, Span

WIDTH = 40


def draw_trace(spans: Sequence[Span]) -> str:
    """A line for each span, below the span that it is a child of, with a bar on one scale of time."""
    if not spans:
        return "no spans"
    known = {span.span_id for span in spans}
    below: dict[str, list[Span]] = {}
    for span in spans:
        below.setdefault(span.parent_id if span.parent_id in known else "", []).append(span)
    begin = min(span.start_ns for span in spans)
    length = max(1, max(span.end_ns for span in spans) - begin)
    rows: list[Sequence[object]] = []

    def draw(parent: str, depth: int) -> None:
        for span in sorted(below.get(parent, ()), key=lambda span: (span.start_ns, -span.end_ns)):
            first = (span.start_ns - begin) * WIDTH // length
            last = max(first + 1, -(-(span.end_ns - begin) * WIDTH // length))
            bar = " " * min(first, WIDTH - 1) + "=" * (last - min(first, WIDTH - 1))
            name = "  " * depth + span.name + (f"  ERROR {span.error}" if span.error else "")
            start = f"{(span.start_ns - begin) / 1e6:.2f}"
            rows.append((name, span.service, start, f"{span.duration_ms:.2f}", f"|{bar[:WIDTH]:<{WIDTH}}|"))
            draw(span.span_id, depth + 1)

    draw("", 0)
    head = ("SPAN", "SERVICE", "START", "MS", f"0{f'{length / 1e6:.2f} ms':>{WIDTH + 1}}")
    return f"trace {spans[0].trace_id}, {len(spans)} spans\n\n" + table(head, rows)


def draw_graph(edges: Mapping[tuple[str, str], int]) -> str:
    """A tree of services from those that nobody calls on; what several call is drawn below the first of them. Numbers:
    spans that are children of the caller's."""
    calls = {edge: count for edge, count in edges.items() if edge[0] != edge[1]}
    callers = {caller for caller, _ in calls}
    called = {service for _, service in calls}
    lines: list[str] = []
    drawn: set[str] = set()

    def draw(service: str, head: str, below: str, count: int) -> None:
        number = f"  {count}" if count else ""
        lines.append(f"{head}{service}{number}{'  (above)' if service in drawn and service in callers else ''}")
        if service in drawn:
            return
        drawn.add(service)
        receivers = sorted(receiver for caller, receiver in calls if caller == service)
        for receiver in receivers:
            last = receiver == receivers[-1]
            more = calls[(service, receiver)]
            draw(receiver, f"{below}{'└' if last else '├'}─▶ ", f"{below}{' ' if last else '│'}   ", more)

    for service in sorted(callers - called):
        draw(service, "", "", 0)
    return "\n".join(lines) or "no calls"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", help="a trace's id (of an execution: the execution's id), or `graph`")
    parser.add_argument("--jaeger", default="http://127.0.0.1:16686", help="its HTTP address")
    given = parser.parse_args()
    jaeger = Jaeger(Ports(query_http=urlsplit(given.jaeger).port or 16686))
    try:
        drawn = draw_graph(jaeger.dependencies()) if given.what == "graph" else draw_trace(jaeger.trace(given.what))
    except OSError as error:
        sys.exit(f"trace_drawing: no Jaeger answers at {given.jaeger}: {error}")
    print(drawn)


if __name__ == "__main__":
    main()
