"""The transition table of a deployment's phase, and the change of its state document."""

from __future__ import annotations

import msgspec

from headrace.model.deployment import DeploymentPhase, DeploymentState

P = DeploymentPhase
TRANSITIONS: dict[DeploymentPhase, frozenset[DeploymentPhase]] = {
    P.PREPARING: frozenset({P.WARM, P.FAILED}),
    P.WARM: frozenset({P.ACTIVE, P.FAILED}),
    # An active deployment fails only before the ingress was given to it.
    P.ACTIVE: frozenset({P.DRAINING, P.FAILED}),
    P.DRAINING: frozenset({P.RETIRED}),
    P.RETIRED: frozenset(),
    P.FAILED: frozenset(),
}

# Phases in which its instances and consumers are wanted, and those in which none may be left.
WANTED = frozenset({P.PREPARING, P.WARM, P.ACTIVE, P.DRAINING})
OVER = frozenset({P.RETIRED, P.FAILED})


def move(
    state: DeploymentState, phase: DeploymentPhase, now: float, *, cause: str = "", cause_reason: str = ""
) -> DeploymentState:
    """The state after a change of phase: the generation rises by one. ValueError if the table has no such change."""
    if phase not in TRANSITIONS[state.phase]:
        raise ValueError(f"no transition from {state.phase} to {phase}")
    return msgspec.structs.replace(
        state,
        phase=phase,
        generation=state.generation + 1,
        changed_at=now,
        cause=cause or state.cause,
        cause_reason=cause_reason or state.cause_reason,
    )
