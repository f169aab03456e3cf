"""A flow's windows as messages: what one watcher asked to see of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from headrace.api.hop.v1 import hop_pb2
from headrace.model.errors import InvalidInput
from headrace.model.histogram_part import HistogramPart
from headrace.model.hop_windows import SPANS_S, Gain, HopWindows, Look, StepKey
from headrace.wire.flow import seconds_from_duration
from headrace.wire.hops import PHASES, row_order
from services.orchestrator.hop_feed import HopFeed

DEFAULT_SPANS = (10,)
LONGEST_PERIOD_S = 60
HOP = "hop"
_COUNTS = tuple(field.name for field in hop_pb2.StepCounts.DESCRIPTOR.fields)


@dataclass(frozen=True, slots=True)
class View:
    """What a watcher asked for; watchers with the same view get the same message."""

    spans: tuple[int, ...]
    step: str
    phases: frozenset[str]


def view_of(request: hop_pb2.WatchHopsRequest) -> View:
    """InvalidInput for windows and phases that do not exist."""
    for span in request.windows:
        if span not in SPANS_S:
            raise InvalidInput.at("windows", span, "is not a window", next_step="Ask for 1, 10 or 60 (seconds)")
    for phase in request.phases:
        if phase not in PHASES:
            raise InvalidInput.at("phases", phase, "is not a phase", next_step=f"Phases are: {', '.join(PHASES)}")
    return View(tuple(dict.fromkeys(request.windows)) or DEFAULT_SPANS, request.step, frozenset(request.phases))


def period_of(request: hop_pb2.WatchHopsRequest) -> int:
    """Ticks from one message to the next."""
    period_s = seconds_from_duration(request.period) if request.HasField("period") else 1.0
    if not 1 <= period_s <= LONGEST_PERIOD_S or period_s != int(period_s):
        raise InvalidInput.at("period", f"{period_s:g}s", f"is not a whole number of seconds, 1 to {LONGEST_PERIOD_S}")
    return int(period_s)


def hops_message(feed: HopFeed, view: View) -> hop_pb2.WatchHopsResponse:
    """The feed as it is now."""
    windows = feed.windows
    answered = windows.present.keys() - set(feed.silent)
    message = hop_pb2.WatchHopsResponse(instances=sorted(answered), silent=feed.silent)
    message.time.FromNanoseconds(feed.time_unix_ns)
    for step, backlog in sorted(feed.backlogs.items()):
        if view.step in ("", step):
            age_s = max(0.0, feed.time_unix_ns / 1e9 - backlog.oldest_at)
            line = message.backlogs.add(step=step, stored=backlog.stored)
            if backlog.oldest_at:
                line.oldest_age.FromMicroseconds(round(age_s * 1e6))
    for span in view.spans:
        message.windows.append(_window(windows, span, view))
    return message


def _window(windows: HopWindows, span: int, view: View) -> hop_pb2.HopWindow:
    gain = windows.window(span)
    message = hop_pb2.HopWindow(seconds=span)
    message.covered.FromMicroseconds(round(gain.duration_s * 1e6))
    message.steps.extend(_steps(windows.present.values(), gain, view))
    for key in sorted(gain.phases, key=row_order):
        step, phase, receiver, revision = key
        if (view.step and step != view.step) or (view.phases and phase not in view.phases):
            continue
        line = message.phases.add(step=step, phase=phase, receiver=receiver, revision=revision)
        line.latency.CopyFrom(_latency(gain.phases[key], gain.duration_s))
        for found in gain.exemplars.get(key, ()):
            exemplar = line.exemplars.add(
                trace_id=found.trace_id.hex(), execution_id=found.execution_id, us=found.ns / 1e3
            )
            exemplar.time.FromNanoseconds(found.time_unix_ns)
    return message


def _steps(present: Iterable[Look], gain: Gain, view: View) -> Iterable[hop_pb2.StepWindow]:
    looks: dict[StepKey, list[Look]] = defaultdict(list)
    for look in present:
        if look.counters:  # else it does not work yet, or no more
            looks[look.step, look.revision].append(look)
    whole: dict[StepKey, HistogramPart] = {}
    for (step, phase, _, revision), part in gain.phases.items():
        if phase == HOP:
            whole.setdefault((step, revision), HistogramPart()).add(part)
    for key in sorted({*looks, *gain.counters, *whole}):
        step, revision = key
        if not step or (view.step and step != view.step):
            continue
        counts = gain.counters.get(key, {})
        known = {name: counts.get(name, 0) for name in _COUNTS}
        message = hop_pb2.StepWindow(
            step=step,
            revision=revision,
            rate=_per_second(known["processed"], gain.duration_s),
            error_rate=_per_second(known["failed"], gain.duration_s),
            counts=hop_pb2.StepCounts(**known),
            held=sum(look.held for look in looks[key]),
            instances=len(looks[key]),
        )
        if key in whole:
            message.hop.CopyFrom(_latency(whole[key], gain.duration_s))
        if message.held:
            oldest_s = max(look.oldest_age_s for look in looks[key])
            message.oldest_age.FromMicroseconds(round(oldest_s * 1e6))
        yield message


def _latency(part: HistogramPart, duration_s: float) -> hop_pb2.Latency:
    p50, p95, p99 = part.quantiles([0.5, 0.95, 0.99])
    return hop_pb2.Latency(
        count=part.count,
        rate=_per_second(part.count, duration_s),
        mean_us=part.mean_ns / 1e3,
        p50_us=p50 / 1e3,
        p95_us=p95 / 1e3,
        p99_us=p99 / 1e3,
        max_us=part.max_ns / 1e3,
        skewed=part.skewed,
    )


def _per_second(count: int, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0
