"""What a tick brings to its trigger."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from headrace.model.durations import format_duration
from services.orchestrator.domain.tick_plan import NANOS, TimerSpec


def tick_body(instant_ns: int, spec: TimerSpec, *, run_now: bool = False) -> bytes:
    """JSON, the same for every attempt to publish the tick. `run_now`: a person asked for it."""
    moment = datetime.fromtimestamp(instant_ns // NANOS, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    millis = instant_ns // 1_000_000
    body: dict[str, object] = {"instant": f"{moment}.{millis % 1000:03d}Z", "unix_ms": millis}
    if spec.schedule is None:
        body["every"] = format_duration(spec.every_ns / NANOS)
    else:
        body |= {"cron": spec.schedule.cron, "time_zone": spec.schedule.zone}
    if run_now:
        body["run_now"] = True
    return msgspec.json.encode(body)
