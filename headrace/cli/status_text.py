"""`headrace status` as text: one screen, the worst news last, where a reader's eye rests."""

from __future__ import annotations

from typing import Any

from headrace.cli.tables import table

_SIZES = ((1 << 40, "TB"), (1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))
MOST_ALARMS = 12


def as_text(facts: dict[str, Any]) -> str:
    """Where the mesh is, its broker, its processes, its flows, what is wrong, what to type next."""
    parts = ["\n".join(_head(facts))]
    if "processes" in facts:
        rows = [(item["role"], item["state"], item["pid"] or "-", item["address"]) for item in facts["processes"]]
        parts.append(table(("PROCESS", "STATE", "PID", "ADDRESS"), rows))
    if facts.get("flows"):
        parts.append(_flows(facts["flows"]))
    elif "flows" in facts:
        parts.append("no flows; write one and type: headrace flow apply FLOW.yaml")
    if alarms := facts.get("alarms", []):
        parts.append("\n".join(_alarms(alarms)))
    return "\n\n".join(parts)


def _head(facts: dict[str, Any]) -> list[str]:
    head = [
        f"{name}: {facts[name]}" for name in ("data", "api", "profile", "version", "code", "otlp") if facts.get(name)
    ]
    if facts.get("metrics"):
        head.append("metrics: " + ", ".join(f"http://{address}/metrics" for address in facts["metrics"]))
    if facts.get("epoch"):
        head.append(f"leader: {facts['leader'] or 'none'} at {facts['leader_address']} (epoch {facts['epoch']})")
    if facts.get("broker"):
        head.append(f"broker: {_broker(facts)}")
    if facts.get("ingress_repairs") or facts.get("strays_moved"):
        repairs = f"{facts['ingress_repairs']} stale ingress switches, {facts['strays_moved']} stray messages"
        head.append(f"put right: {repairs}")
    return head


def _broker(facts: dict[str, Any]) -> str:
    broker = facts["broker"]
    if not broker.get("up"):
        return "does not answer"
    said = [f"nats-server {facts['broker_version']}", f"{size(broker.get('stored_bytes', 0))} stored"]
    for server in broker.get("servers", []):
        if not server.get("up"):
            said.append(f"{server['name']} does not answer")
            continue
        said.append(f"{size(server.get('memory_bytes', 0))} of memory")
        if whole := int(server.get("disk_size_bytes", 0)):
            free = int(server.get("disk_free_bytes", 0))
            said.append(f"{size(free)} of the disk free ({100 * free // whole} %)")
    return ", ".join(said)


def _flows(flows: list[dict[str, Any]]) -> str:
    if "health" not in flows[0]:  # nobody leads
        rows = [(flow["flow"], flow["state"], flow["version"] or "-", flow["deployment"] or "-") for flow in flows]
        return table(("FLOW", "STATE", "VERSION", "DEPLOYMENT"), rows)
    return table(
        (
            "FLOW",
            "STATE",
            "HEALTH",
            "VERSION",
            "DEPLOYMENT",
            "WAITING",
            "IN FLIGHT",
            "OLDEST",
            "DONE",
            "FAILED",
            "DEAD",
        ),
        [
            (
                flow["flow"] + (" (draft)" if flow["draft"] else ""),
                flow["state"],
                flow["health"] if flow["state"] != "STOPPED" else "-",
                flow["version"] or "-",
                flow["deployment"] or "-",
                flow["waiting"],
                flow["in_flight"],
                age(flow["oldest_age_s"]),
                flow["processed"],
                flow["failed_attempts"],
                flow["dead_letters"],
            )
            for flow in flows
        ],
    )


def _alarms(alarms: list[dict[str, str]]) -> list[str]:
    lines: list[str] = []
    for alarm in alarms[:MOST_ALARMS]:
        about = f"{alarm['flow']}: " if alarm["flow"] else ""
        lines += [f"alarm: {about}{alarm['message']}", f"  next: {alarm['next_step']}"]
    if len(alarms) > MOST_ALARMS:
        lines.append(f"and {len(alarms) - MOST_ALARMS} more; all of them: headrace status --json")
    return lines


def size(count: int | str) -> str:
    """Bytes for people; JSON has large numbers as text."""
    number = int(count)
    for unit, name in _SIZES:
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} B"


def age(seconds: float) -> str:
    """`-` for none."""
    if seconds <= 0:
        return "-"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= unit:
            return f"{seconds / unit:.1f} {name}"
    return f"{seconds:.1f} s"
