"""The table of stages and the fence of generations."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.model.errors import WrongState
from services.sidecar.domain.lifecycle import (
    RECOVERY,
    STATE_OF,
    TRANSITIONS,
    Happening,
    Stage,
    State,
    admit_generation,
    next_stage,
)


def test_every_stage_has_a_state_and_can_be_reached() -> None:
    assert set(STATE_OF) == set(Stage)
    reached = {Stage.SLEEPING} | set(TRANSITIONS.values())
    assert reached == set(Stage)


def test_every_stage_before_the_end_can_be_shut_down() -> None:
    for stage in set(Stage) - {Stage.SHUTTING_DOWN, Stage.ENDED}:
        assert next_stage(stage, Happening.SHUT_DOWN) is Stage.SHUTTING_DOWN


@given(st.lists(st.sampled_from(Happening), max_size=40))
def test_no_history_leaves_the_table(happenings: list[Happening]) -> None:
    stage = Stage.SLEEPING
    was_warm = False
    for happening in happenings:
        if (stage, happening) not in TRANSITIONS:
            with pytest.raises(WrongState):
                next_stage(stage, happening)
            continue
        stage = next_stage(stage, happening)
        was_warm = was_warm or stage is Stage.WARM
        # Nothing runs that was not checked before.
        assert (
            STATE_OF[stage] is not State.RUNNING
            or was_warm
            or Happening.RECOVERED_ACTIVE in happenings
            or (Happening.RECOVERED_DRAINING in happenings)
        )


def test_recovery_returns_to_the_stage_that_was_left() -> None:
    for left, happening in RECOVERY.items():
        back = next_stage(Stage.FAILED, happening)
        assert back is left or (left is Stage.DRAINED and back is Stage.DRAINING)


def test_activate_needs_warm() -> None:
    with pytest.raises(WrongState) as caught:
        next_stage(Stage.FETCHING, Happening.ACTIVATE)
    assert caught.value.reason == "NOT_WARM"


@given(st.lists(st.integers(min_value=0, max_value=20)))
def test_generations_never_go_back(given_numbers: list[int]) -> None:
    seen = 0
    for number in given_numbers:
        if number < seen:
            with pytest.raises(WrongState) as caught:
                admit_generation(seen, number)
            assert caught.value.reason == "STALE_GENERATION"
        else:
            seen = admit_generation(seen, number)
            assert seen == number
