"""Writes deploy/grafana/*.json from the panels below; `--check` only says whether they are up to date."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.generated_files import keep

PLACE = Path(__file__).parents[1] / "deploy" / "grafana"
HOPS = "headrace_hop_phase_duration_seconds"
FLOW = '{flow=~"$flow"}'
WIDTH, HEIGHT, COLUMNS = 12, 8, 24


@dataclass(frozen=True)
class Panel:
    """`queries` are expressions with the legend of their lines; `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


def rate(metric: str, by: str, labels: str = 'flow=~"$flow"') -> str:
    """Per second over Grafana's own interval."""
    return f"sum by ({by}) (rate({metric}{{{labels}}}[$__rate_interval]))"


def quantile(fraction: float, by: str, labels: str) -> str:
    """Of the hops' histogram."""
    return f"histogram_quantile({fraction}, {rate(f'{HOPS}_bucket', f'{by}, le', labels)})"


STEP = "{{flow}}/{{step}}"
OVERVIEW = (
    Panel("Flows by state", "short", ((f"sum by (state) (headrace_flow_state{FLOW})", "{{state}}"),)),
    Panel("Health: 1 serves", "short", ((f"headrace_flow_serving{FLOW}", "{{flow}}"),)),
    Panel("Requests", "reqps", ((rate("headrace_gateway_requests_total", "flow, status"), "{{flow}} {{status}}"),)),
    Panel(
        "Refusals",
        "reqps",
        (
            (
                rate("headrace_gateway_requests_total", "flow, reason", 'flow=~"$flow",status=~"4xx|5xx"'),
                "{{flow}} {{reason}}",
            ),
        ),
    ),
    Panel("Messages done", "ops", ((rate("headrace_step_messages_total", "flow, step, outcome"), STEP + " {{outcome}}"),)),
    Panel(
        "Failed attempts, retries, time limits",
        "ops",
        (
            (rate("headrace_step_failed_attempts_total", "flow, step"), STEP + " failed"),
            (rate("headrace_step_retries_total", "flow, step"), STEP + " retried"),
            (rate("headrace_step_timeouts_total", "flow, step"), STEP + " over its limit"),
            (rate("headrace_step_crashed_calls_total", "flow, step"), STEP + " crashed"),
        ),
    ),
    Panel("Waiting", "short", ((f"max by (flow, step) (headrace_step_waiting_messages{FLOW})", STEP),)),
    Panel("In flight", "short", ((f"max by (flow, step) (headrace_step_in_flight_messages{FLOW})", STEP),)),
    Panel("Age of the oldest message", "s", ((f"max by (flow, step) (headrace_step_oldest_message_age_seconds{FLOW})", STEP),)),
    Panel(
        "Dead letters",
        "short",
        (
            (f"max by (flow) (headrace_flow_dead_letters_kept{FLOW})", "{{flow}} kept"),
            (f"increase(headrace_flow_dead_letters_total{FLOW}[1h])", "{{flow}} in an hour"),
            (f"max by (flow) (headrace_flow_dead_letters_pushed_out{FLOW})", "{{flow}} pushed out"),
        ),
    ),
    Panel("Dead letters by reason", "ops", ((rate("headrace_step_dead_letters_total", "flow, step, reason"), STEP + " {{reason}}"),)),
    Panel(
        "Full edges and rebounds",
        "ops",
        (
            (rate("headrace_step_edge_full_total", "flow, step"), STEP + " next edge full"),
            (rate("headrace_step_rebounds_total", "flow, step"), STEP + " rebounds"),
        ),
    ),
    Panel("Received and emitted", "ops", (
        (rate("headrace_step_received_total", "flow, step"), STEP + " received"),
        (rate("headrace_step_emitted_total", "flow, step"), STEP + " emitted"),
    )),
)  # fmt: skip
_HOP = 'flow=~"$flow",phase="hop"'
LATENCY = (
    Panel("Hop p50", "s", ((quantile(0.5, "flow, step", _HOP), STEP),)),
    Panel("Hop p99", "s", ((quantile(0.99, "flow, step", _HOP), STEP),)),
    Panel("Phases, mean (they add up to the hop)", "s", (
        (f"{rate(f'{HOPS}_sum', 'flow, step, phase')} / {rate(f'{HOPS}_count', 'flow, step, phase')}", STEP + " {{phase}}"),
    )),
    Panel("Phases, p99", "s", ((quantile(0.99, "flow, step, phase", 'flow=~"$flow"'), STEP + " {{phase}}"),)),
    Panel("Hop p99 by revision: old and new code side by side", "s", (
        (quantile(0.99, "flow, step, revision", _HOP), STEP + " {{revision}}"),
    )),
    Panel("Hops per second", "ops", ((rate(f"{HOPS}_count", "flow, step, receiver", _HOP), STEP + " to {{receiver}}"),)),
    Panel("Hops by duration", "s", ((rate(f"{HOPS}_bucket", "le", _HOP), "{{le}}"),), "heatmap"),
    Panel("Clock skew: negative phases", "ops", ((rate("headrace_hop_clock_skew_total", "flow, step, phase"), STEP + " {{phase}}"),)),
)  # fmt: skip
BROKER = (
    Panel("Up", "short", (
        ("min(headrace_broker_up)", "JetStream answers"),
        ("headrace_broker_server_up", "{{server}}"),
    )),
    Panel("Time to answer", "s", (("max(headrace_broker_answer_seconds)", "JetStream API"),)),
    Panel("Stored", "bytes", (
        ("max(headrace_broker_stored_bytes)", "all streams"),
        (f"max by (flow) (headrace_flow_stored_bytes{FLOW})", "{{flow}}"),
    )),
    Panel("Disk free", "bytes", (
        ("headrace_broker_server_disk_free_bytes", "{{server}}"),
        ("headrace_broker_server_disk_size_bytes", "{{server}} size"),
        ("headrace_broker_server_storage_limit_bytes", "{{server}} limit of JetStream"),
    )),
    Panel("Memory", "bytes", (("headrace_broker_server_memory_bytes", "{{server}}"),)),
    Panel("Connections and clients cut off", "short", (
        ("headrace_broker_server_connections", "{{server}} connections"),
        ("increase(headrace_broker_server_slow_consumers_total[10m])", "{{server}} cut off in 10 min"),
    )),
    Panel("Traffic", "Bps", (
        ("rate(headrace_broker_server_received_bytes_total[$__rate_interval])", "{{server}} in"),
        ("rate(headrace_broker_server_sent_bytes_total[$__rate_interval])", "{{server}} out"),
    )),
    Panel("Streams and consumers", "short", (
        ("max(headrace_broker_streams)", "streams"),
        ("max(headrace_broker_consumers)", "consumers"),
        ("rate(headrace_broker_api_errors_total[$__rate_interval])", "refused API calls per second"),
    )),
    Panel("Messages stored", "short", ((f"max by (flow) (headrace_flow_stored_messages{FLOW})", "{{flow}}"),)),
)  # fmt: skip
LIFECYCLE = (
    Panel("Leader", "short", (
        ("sum(headrace_leader)", "orchestrators that lead"),
        ("max(headrace_leader_epoch)", "epoch"),
        ("max(headrace_agent_up)", "agent answers"),
        ("max(headrace_gateways)", "gateways"),
    )),
    Panel("Instances by state", "short", ((f"sum by (state) (headrace_step_instances{FLOW})", "{{state}}"),)),
    Panel("Restarts in ten minutes", "short", (
        (f"sum by (flow, step, part) (increase(headrace_step_restarts_total{FLOW}[10m]))", STEP + " {{part}}"),
    )),
    Panel("Start of instances by stage (warm-up)", "s", (
        (f"max by (flow, step, stage) (headrace_step_start_seconds{FLOW})", STEP + " {{stage}}"),
    )),
    Panel("Start of the running deployment (activate: the switch)", "s", (
        (f"max by (flow, stage) (headrace_flow_deployment_start_seconds{FLOW})", "{{flow}} {{stage}}"),
    )),
    Panel("Redeliveries, duplicates, in doubt", "ops", (
        (rate("headrace_step_redeliveries_total", "flow, step"), STEP + " redelivered"),
        (rate("headrace_step_duplicates_total", "flow, step"), STEP + " duplicates not done again"),
        (rate("headrace_step_in_doubt_total", "flow, step"), STEP + " in doubt"),
    )),
    Panel("Put right", "short", (
        (f"increase(headrace_flow_ingress_repairs_total{FLOW}[1h])", "{{flow}} stale switches"),
        (f"increase(headrace_flow_strays_total{FLOW}[1h])", "{{flow}} strays"),
        (f"increase(headrace_flow_stuck_redelivered_total{FLOW}[1h])", "{{flow}} stuck at the broker"),
        (f"increase(headrace_flow_dropped_messages_total{FLOW}[1h])", "{{flow}} dropped by people"),
    )),
    Panel("API calls", "reqps", ((rate("headrace_api_calls_total", "method, code", ""), "{{method}} {{code}}"),)),
    Panel("Requests and streams in work", "short", (
        ("max(headrace_gateway_requests_in_work)", "gateway requests"),
        ("sum(headrace_api_open_streams)", "API streams"),
    )),
    Panel("Telemetry", "short", (
        ("rate(headrace_spans_sent_total[$__rate_interval])", "spans sent per second"),
        ("rate(headrace_spans_dropped_total[$__rate_interval])", "lost per second"),
        ("max(headrace_metrics_collect_seconds)", "seconds to collect"),
        ("max(headrace_metrics_processes)", "processes"),
        ("max(headrace_metrics_unread_flows)", "flows not read"),
        ("rate(headrace_metrics_overflowed_total[$__rate_interval])", "{{metric}} over the bound"),
    )),
)  # fmt: skip
DASHBOARDS: Mapping[str, tuple[str, tuple[Panel, ...]]] = {
    "flows": ("Headrace: flows", OVERVIEW),
    "hops": ("Headrace: hop latency", LATENCY),
    "broker": ("Headrace: broker", BROKER),
    "lifecycle": ("Headrace: lifecycle", LIFECYCLE),
}


def expressions() -> list[str]:
    """Of all panels, as Prometheus takes them: Grafana's variables filled in."""
    found = [query for _, panels in DASHBOARDS.values() for panel in panels for query, _ in panel.queries]
    return [query.replace("$flow", ".*").replace("$__rate_interval", "1m") for query in found]


def render() -> Mapping[Path, str]:
    return {
        PLACE / f"headrace-{name}.json": json.dumps(_dashboard(name, title, panels), indent=1) + "\n"
        for name, (title, panels) in DASHBOARDS.items()
    }


def _dashboard(name: str, title: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    source = {"type": "prometheus", "uid": "${source}"}
    return {
        "uid": f"headrace-{name}",
        "title": title,
        "tags": ["headrace"],
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,
        "templating": {
            "list": [
                {"name": "source", "type": "datasource", "query": "prometheus"},
                {
                    "name": "flow",
                    "type": "query",
                    "datasource": source,
                    "query": "label_values(headrace_flow_state, flow)",
                    "refresh": 2,
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                    "current": {"text": "All", "value": "$__all"},
                },
            ]
        },
        "panels": [_panel(number, panel, source) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel, source: dict[str, str]) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + index),
            "datasource": source,
            "expr": query,
            "legendFormat": legend,
            "exemplar": "histogram_quantile" in query,
            **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
        }
        for index, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number + 1,
        "title": panel.title,
        "type": panel.kind,
        "datasource": source,
        "gridPos": {
            "x": number * WIDTH % COLUMNS,
            "y": number * WIDTH // COLUMNS * HEIGHT,
            "w": WIDTH,
            "h": HEIGHT,
        },
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": targets,
    }


if __name__ == "__main__":
    sys.exit(keep(__doc__, "python -m tools.grafana_dashboards", render))
