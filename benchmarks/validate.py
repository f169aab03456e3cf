"""How long `headrace flow validate` takes to look a flow of a hundred steps over, without a mesh: ms, best of five."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

from headrace.client.flow_check import check_flow_file
from headrace.model.flow_spec import MAX_STEPS
from headrace.wire.flow_file import parse_flow_file

ROUNDS = 5
ROOT = Path(__file__).parents[1]


def validate() -> dict[str, float]:
    """Reading with its places, graph, and the manifests of the components' folders; the second is the whole."""
    text = long_flow()
    best_read = best_all = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        file = parse_flow_file(text, source="flow.yaml", folder=ROOT)
        read = time.perf_counter()
        asyncio.run(check_flow_file(file, None))
        best_read = min(best_read, read - began)
        best_all = min(best_all, time.perf_counter() - began)
    return {"steps": MAX_STEPS, "read_ms": round(best_read * 1000, 1), "all_ms": round(best_all * 1000, 1)}


def long_flow() -> str:
    """A chain: the webhook, and 99 steps of the example's `notify`."""
    lines = ["name: long", "steps:", "  s0: {component: ./components/webhook, function: receive, to: [s1]}"]
    for number in range(1, MAX_STEPS):
        to = f", to: [s{number + 1}]" if number + 1 < MAX_STEPS else ""
        settings = f"config: {{path: /tmp/s{number}.jsonl}}, retry: {{attempts: 5, backoff: 1s}}, timeout: 10s"
        lines.append(f"  s{number}: {{component: ./examples/orders/notify, function: notify, {settings}{to}}}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(validate())
