"""Life of one instance: the only table of its stages, and the fence that refuses stale decisions.

A stage is what DESIGN calls state plus progress; `STATE_OF` gives the state of each. A pair that is not in
`TRANSITIONS` does not exist: `next_stage` raises WrongState for it.
"""

from __future__ import annotations

from enum import StrEnum

from headrace.model.errors import WrongState


class State(StrEnum):
    SLEEPING = "SLEEPING"
    STARTING = "STARTING"
    RUNNING = "RUNNING"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    FAILED = "FAILED"


class Stage(StrEnum):
    SLEEPING = "SLEEPING"
    FETCHING = "FETCHING"
    BUILDING = "BUILDING"
    STARTING = "STARTING"
    INIT = "INIT"
    SELF_CHECK = "SELF_CHECK"
    WARM = "WARM"
    ACTIVE = "ACTIVE"
    DRAINING = "DRAINING"
    DRAINED = "DRAINED"
    FAILED = "FAILED"
    SHUTTING_DOWN = "SHUTTING_DOWN"
    ENDED = "ENDED"


class Happening(StrEnum):
    """What moves an instance from stage to stage."""

    PREPARE = "prepare"
    FETCHED = "fetched"
    BUILT = "built"
    STARTED = "started"
    INITIALISED = "initialised"
    CHECKED = "checked"
    ACTIVATE = "activate"
    DRAIN = "drain"
    EMPTIED = "emptied"
    FILLED = "filled"
    FAIL = "fail"
    RECOVERED_WARM = "recovered_warm"
    RECOVERED_ACTIVE = "recovered_active"
    RECOVERED_DRAINING = "recovered_draining"
    SHUT_DOWN = "shut_down"
    ENDED = "ended"


STATE_OF: dict[Stage, State] = {
    Stage.SLEEPING: State.SLEEPING,
    Stage.FETCHING: State.STARTING,
    Stage.BUILDING: State.STARTING,
    Stage.STARTING: State.STARTING,
    Stage.INIT: State.STARTING,
    Stage.SELF_CHECK: State.STARTING,
    Stage.WARM: State.STARTING,
    Stage.ACTIVE: State.RUNNING,
    Stage.DRAINING: State.RUNNING,
    Stage.DRAINED: State.RUNNING,
    Stage.FAILED: State.FAILED,
    Stage.SHUTTING_DOWN: State.SHUTTING_DOWN,
    Stage.ENDED: State.SLEEPING,
}

_PREPARING = (Stage.FETCHING, Stage.BUILDING, Stage.STARTING, Stage.INIT, Stage.SELF_CHECK)
_WORKING = (Stage.ACTIVE, Stage.DRAINING, Stage.DRAINED)

TRANSITIONS: dict[tuple[Stage, Happening], Stage] = {
    (Stage.SLEEPING, Happening.PREPARE): Stage.FETCHING,
    (Stage.FAILED, Happening.PREPARE): Stage.FETCHING,
    (Stage.FETCHING, Happening.FETCHED): Stage.BUILDING,
    (Stage.BUILDING, Happening.BUILT): Stage.STARTING,
    (Stage.STARTING, Happening.STARTED): Stage.INIT,
    (Stage.INIT, Happening.INITIALISED): Stage.SELF_CHECK,
    (Stage.SELF_CHECK, Happening.CHECKED): Stage.WARM,
    (Stage.WARM, Happening.ACTIVATE): Stage.ACTIVE,
    (Stage.WARM, Happening.DRAIN): Stage.DRAINING,
    (Stage.ACTIVE, Happening.DRAIN): Stage.DRAINING,
    (Stage.DRAINING, Happening.EMPTIED): Stage.DRAINED,
    (Stage.DRAINED, Happening.FILLED): Stage.DRAINING,
    **{(stage, Happening.FAIL): Stage.FAILED for stage in (*_PREPARING, Stage.WARM, *_WORKING)},
    # After a crash loop that ended: the stage that was left.
    (Stage.FAILED, Happening.RECOVERED_WARM): Stage.WARM,
    (Stage.FAILED, Happening.RECOVERED_ACTIVE): Stage.ACTIVE,
    (Stage.FAILED, Happening.RECOVERED_DRAINING): Stage.DRAINING,
    **{
        (stage, Happening.SHUT_DOWN): Stage.SHUTTING_DOWN
        for stage in (Stage.SLEEPING, *_PREPARING, Stage.WARM, *_WORKING, Stage.FAILED)
    },
    (Stage.SHUTTING_DOWN, Happening.ENDED): Stage.ENDED,
}

RECOVERY: dict[Stage, Happening] = {
    Stage.WARM: Happening.RECOVERED_WARM,
    Stage.ACTIVE: Happening.RECOVERED_ACTIVE,
    Stage.DRAINING: Happening.RECOVERED_DRAINING,
    Stage.DRAINED: Happening.RECOVERED_DRAINING,
}


def next_stage(stage: Stage, happening: Happening) -> Stage:
    """The stage that follows; WrongState when the table has no such pair."""
    following = TRANSITIONS.get((stage, happening))
    if following is None:
        reason = "NOT_WARM" if happening is Happening.ACTIVATE else "WRONG_STATE"
        raise WrongState(
            f"{happening.value} does not fit stage {stage.value}",
            reason=reason,
            next_step="Call GetStatus; repeat the call when the instance is in the stage it needs",
        )
    return following


def admit_generation(seen: int, given: int) -> int:
    """The highest generation seen after a call; a lower one is refused with STALE_GENERATION."""
    if given < seen:
        raise WrongState(
            f"generation {given} is older than {seen}, which this instance has seen",
            reason="STALE_GENERATION",
            next_step="Read the deployment's state again and decide anew",
            metadata={"seen": str(seen), "given": str(given)},
        )
    return given
