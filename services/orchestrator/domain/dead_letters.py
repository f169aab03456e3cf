"""The stream of a flow's dead letters, its counts, and where a letter's message is replayed to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from headrace.model import subjects
from headrace.model.deployment import DeploymentPhase, DeploymentPlan
from headrace.model.errors import WrongState
from headrace.model.flow_stream import DUPLICATE_WINDOW_S, NANOS
from services.orchestrator.domain.documents import FlowDocument
from services.orchestrator.domain.flow_states import FlowState
from services.orchestrator.domain.letter_ledger import LetterLedger


@dataclass(frozen=True, slots=True)
class LetterLimits:
    """How much of a flow's letters is kept; past any of these the oldest go."""

    count: int = 10_000
    size: int = 256 * 1024 * 1024
    age_s: float = 30 * 24 * 3600.0


DEFAULT_LIMITS = LetterLimits()


@dataclass(frozen=True, slots=True)
class LettersView:
    """The letters' stream: the part of its config that is decided here, and its state."""

    config: Mapping[str, object]
    kept: int = 0
    size: int = 0
    stored: int = 0
    """Ever: its last sequence."""
    oldest_at: str = ""
    """RFC 3339; empty when there is none."""


def letter_stream_config(workspace: str, flow: str, limits: LetterLimits, copies: int = 1) -> dict[str, object]:
    return {
        "name": subjects.dead_letter_stream(workspace, flow),
        "subjects": (subjects.dead_letter_filter(workspace, flow),),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_msgs": limits.count,
        "max_bytes": limits.size,
        "max_age": int(limits.age_s * NANOS),
        "duplicate_window": int(min(DUPLICATE_WINDOW_S, limits.age_s) * NANOS),  # the broker takes no longer one
        "allow_direct": True,
        "num_replicas": copies,
    }


def letters_view(info: Mapping[str, object], wanted: Mapping[str, object]) -> LettersView:
    """What is needed of a STREAM.INFO answer; `wanted` says which fields of the config count."""
    config, state = info["config"], info.get("state")
    assert isinstance(config, Mapping)
    shown = {key: config[key] for key in wanted if key in config}
    shown["subjects"] = tuple(config.get("subjects") or ())
    numbers = state if isinstance(state, Mapping) else {}
    kept = int(numbers.get("messages", 0))
    oldest = str(numbers.get("first_ts", "")) if kept else ""
    return LettersView(shown, kept, int(numbers.get("bytes", 0)), int(numbers.get("last_seq", 0)), oldest)


def pushed_out(view: LettersView, ledger: LetterLedger) -> int:
    """Letters that went because of a limit: all that are gone, but those that a person replayed or discarded.

    While noted letters are being deleted they count as gone already, so this may be too low for that moment.
    """
    return max(0, view.stored - view.kept - ledger.replayed - ledger.discarded)


@dataclass(frozen=True, slots=True)
class ReplayTarget:
    """The deployment that gets a replayed message."""

    plan: DeploymentPlan
    own: bool
    """It is the letter's own, so the message meets the revision that failed it."""


def replay_target(
    flow: FlowDocument, plans: Mapping[int, DeploymentPlan | None], phases: Mapping[int, str], deployment: int
) -> ReplayTarget:
    """Where letters of a deployment go: to itself while its messages are worked on, else to the one that runs.

    `plans` and `phases` are those of live deployments. WrongState where the flow does not run.
    """
    working = (DeploymentPhase.ACTIVE, DeploymentPhase.DRAINING)
    for number in (deployment, flow.active):
        plan = plans.get(number)
        if plan is None or number in flow.closed or phases.get(number) not in working:
            continue
        if flow.state not in (FlowState.STOPPED, FlowState.STOPPING):
            return ReplayTarget(plan, own=number == deployment)
    raise WrongState(
        f"flow {flow.flow!r} is {flow.state}: its dead letters cannot be replayed",
        reason="FLOW_NOT_RUNNING",
        next_step=f"Start it: headrace flow start {flow.flow}",
        metadata={"flow": flow.flow, "state": str(flow.state)},
    )
