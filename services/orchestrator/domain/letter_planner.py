"""What a flow's dead letters and stimuli need of the orchestrator: their streams as decided, and work that was begun
ended."""

from __future__ import annotations

from services.orchestrator.domain.actions import Action, EnsureLetters, EnsureStimuli, FinishLetters
from services.orchestrator.domain.dead_letters import letter_stream_config
from services.orchestrator.domain.snapshot import Snapshot
from services.orchestrator.domain.stimuli import newest_history, stimulus_stream_config


def plan_letters(snapshot: Snapshot) -> list[Action]:
    """A flow that was ever started has a stream for its letters."""
    flow = snapshot.flow
    if not flow.has_stream:
        return []
    actions: list[Action] = []
    wanted = letter_stream_config(snapshot.workspace, flow.flow, snapshot.letter_limits, snapshot.stream_copies)
    if snapshot.letters is None or dict(snapshot.letters.config) != wanted:
        actions.append(EnsureLetters(wanted))
    history = newest_history(flow.live, snapshot.deployments)
    if history is not None:
        wanted = stimulus_stream_config(snapshot.workspace, flow.flow, history, snapshot.stream_copies)
        if snapshot.stimuli is None or dict(snapshot.stimuli.config) != wanted:
            actions.append(EnsureStimuli(wanted))
    if flow.letters.work is not None:
        actions.append(FinishLetters())
    return actions
