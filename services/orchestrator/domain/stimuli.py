"""The stream of what started a flow's executions, for flows that keep `history`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headrace.model import subjects
from headrace.model.flow_spec import MAX_HISTORY_BYTES, HistorySpec
from headrace.model.flow_stream import DUPLICATE_WINDOW_S, NANOS
from services.orchestrator.domain.snapshot import DeploymentView


def stimulus_stream_config(workspace: str, flow: str, history: HistorySpec, copies: int = 1) -> dict[str, object]:
    return {
        "name": subjects.stimulus_stream(workspace, flow),
        "subjects": (subjects.stimulus_filter(workspace, flow),),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs": history.count,
        "max_bytes": MAX_HISTORY_BYTES,
        "max_age": int(history.age_s * NANOS),
        "duplicate_window": min(DUPLICATE_WINDOW_S, int(history.age_s)) * NANOS,
        "allow_direct": True,
        "num_replicas": copies,
    }


def newest_history(live: Sequence[int], deployments: Mapping[int, DeploymentView]) -> HistorySpec | None:
    """As the newest live deployment that keeps history wants it; None where none does: what is there then stays until
    it is too old."""
    plans = (deployments[number].plan for number in sorted(live, reverse=True) if number in deployments)
    return next((plan.history for plan in plans if plan is not None and plan.history is not None), None)
