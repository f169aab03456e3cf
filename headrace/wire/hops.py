"""Hop histograms to protos and back, and the merge of what many instances answered."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.message import DecodeError

from headrace.api.hop.v1.hop_pb2 import ExemplarSample, GetHopsResponse, HopPhase, HopSnapshot, PhaseHistogram
from headrace.model.errors import InvalidInput
from headrace.model.histogram import BUCKETS, Exemplar, Histogram
from headrace.model.histogram_part import HistogramPart
from headrace.model.hop_windows import Look, PhaseKey

PHASES = ("queue", "gateway-in", "sidecar-in", "component", "sidecar-out", "publish", "hop", "gateway-out")
"""In the order of a message's way; lines of a table are sorted by it."""


def phase_to_proto(key: PhaseKey, histogram: Histogram) -> PhaseHistogram:
    step, phase, receiver, revision = key
    return PhaseHistogram(
        step=step,
        phase=phase,
        receiver=receiver,
        revision=revision,
        count=histogram.count,
        sum_ns=histogram.sum_ns,
        max_ns=histogram.max_ns,
        skewed=histogram.skewed,
        buckets=histogram.sparse(),
        exemplars=[
            ExemplarSample(
                ns=found.ns, trace_id=found.trace_id, execution_id=found.execution_id, time_unix_ns=found.time_unix_ns
            )
            for found in histogram.exemplars.values()
        ],
    )


def phase_from_proto(proto: PhaseHistogram) -> Histogram:
    """ValueError for buckets that do not exist."""
    return Histogram.from_sparse(proto.buckets, sum_ns=proto.sum_ns, max_ns=proto.max_ns, skewed=proto.skewed)


def decode_snapshot(raw: bytes) -> HopSnapshot:
    """InvalidInput for bytes that are no snapshot."""
    try:
        snapshot = HopSnapshot.FromString(raw)
        for proto in snapshot.histograms:
            if any(index >= BUCKETS for index in proto.buckets):
                raise ValueError(f"a bucket beyond {BUCKETS - 1}")
    except (DecodeError, ValueError) as error:
        raise InvalidInput(f"not a hop snapshot ({len(raw)} bytes): {error}", reason="MALFORMED_MESSAGE") from error
    return snapshot


def look_of(snapshot: HopSnapshot) -> Look:
    """A decoded snapshot as the windows take it."""
    phases: dict[PhaseKey, HistogramPart] = {}
    exemplars: dict[PhaseKey, list[Exemplar]] = {}
    for proto in snapshot.histograms:
        key = (proto.step, proto.phase, proto.receiver, proto.revision)
        phases[key] = HistogramPart(dict(proto.buckets), proto.sum_ns, proto.max_ns, proto.skewed)
        if proto.exemplars:
            exemplars[key] = [
                Exemplar(found.ns, found.trace_id, found.execution_id, found.time_unix_ns) for found in proto.exemplars
            ]
    return Look(
        snapshot.instance,
        snapshot.step,
        snapshot.revision,
        snapshot.incarnation,
        snapshot.uptime_ns / 1e9,
        phases,
        dict(snapshot.counters),
        exemplars,
        snapshot.held,
        snapshot.oldest_age_ns / 1e9,
    )


def merge_snapshots(snapshots: Iterable[HopSnapshot], *, deployment: int = 0) -> GetHopsResponse:
    """Percentiles per step, phase, receiver and revision over all instances of a deployment (0: of all).

    Snapshots whose own deployment is 0 (gateways) always count. An instance that answered twice counts once;
    an answer without an instance (the broker's "no responders") not at all.
    """
    merged: dict[PhaseKey, Histogram] = {}
    instances: set[str] = set()
    for snapshot in snapshots:
        if (
            not snapshot.instance
            or snapshot.instance in instances
            or (deployment and snapshot.deployment not in (0, deployment))
        ):
            continue
        instances.add(snapshot.instance)
        for proto in snapshot.histograms:
            key = (proto.step, proto.phase, proto.receiver, proto.revision)
            histogram = phase_from_proto(proto)
            if key in merged:
                merged[key].merge(histogram)
            else:
                merged[key] = histogram
    rows = sorted(merged.items(), key=lambda item: row_order(item[0]))
    return GetHopsResponse(phases=[_row(key, histogram) for key, histogram in rows], instances=sorted(instances))


def row_order(key: PhaseKey) -> tuple[str, int, str, str]:
    """By step, then in the order of a message's way."""
    step, phase, receiver, revision = key
    return step, PHASES.index(phase) if phase in PHASES else len(PHASES), receiver, revision


def _row(key: PhaseKey, histogram: Histogram) -> HopPhase:
    step, phase, receiver, revision = key
    p50, p95, p99 = histogram.quantiles([0.5, 0.95, 0.99])
    return HopPhase(
        step=step,
        phase=phase,
        receiver=receiver,
        revision=revision,
        count=histogram.count,
        mean_us=histogram.mean_ns / 1e3,
        p50_us=p50 / 1e3,
        p95_us=p95 / 1e3,
        p99_us=p99 / 1e3,
        max_us=histogram.max_ns / 1e3,
        skewed=histogram.skewed,
    )
