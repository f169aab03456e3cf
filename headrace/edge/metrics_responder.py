"""Tells the leader what this process counted, when it asks on NATS: so no sidecar needs a port for its metrics."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable

from nats.aio.client import Client

from headrace.api.metrics.v1.metrics_pb2 import ProcessMetrics
from headrace.edge.nats_responder import NatsResponder
from headrace.model import subjects
from headrace.model.hop_record import SpanCounts
from headrace.wire.process_metrics import parts


class MetricsResponder(NatsResponder):
    """Answers requests on `hr.<workspace>._metrics`, in several messages where one would be too large.

    `fill` writes the present counts into a message that names the process already.
    """

    def __init__(
        self, connection: Client, workspace: str, process: str, fill: Callable[[ProcessMetrics], None]
    ) -> None:
        super().__init__(connection, subjects.metrics_request_subject(workspace))
        self._process, self._fill = process, fill
        # Two processes never share both, so that counts which begin anew are seen to do so.
        self._incarnation = f"{os.getpid()}.{time.time_ns():x}"

    def present(self) -> ProcessMetrics:
        """What this process would answer now."""
        report = ProcessMetrics(process=self._process, incarnation=self._incarnation)
        self._fill(report)
        return report

    def answers(self, asked: str) -> Iterable[bytes]:
        """See NatsResponder."""
        return (part.SerializeToString() for part in parts(self.present()))


def tell_spans(report: ProcessMetrics, counts: SpanCounts) -> None:
    """What became of the spans that this process recorded."""
    report.spans_sent = counts.exported
    report.spans_dropped = counts.dropped + counts.rejected
