"""What one life of a sidecar leaves for the next, and for how long the next is careful."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.sidecar.careful_start import LASTING_S, CarefulStart
from services.sidecar.domain.sidecar_deaths import CAREFUL_AFTER


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def died_often(file: Path, clock: Clock) -> CarefulStart:
    """The life after so many deaths in a row."""
    for _ in range(CAREFUL_AFTER + 1):
        life = CarefulStart(file, clock)
    return life


def test_it_is_careful_after_deaths_in_a_row_and_not_after_an_orderly_end(tmp_path: Path, clock: Clock) -> None:
    life = died_often(tmp_path / "deaths", clock)
    assert life.careful
    life.forget()
    assert not CarefulStart(tmp_path / "deaths", clock).careful


def test_one_that_is_done_says_nothing_of_those_that_have_not_come_yet(tmp_path: Path, clock: Clock) -> None:
    life = died_often(tmp_path / "deaths", clock)
    assert life.guilt("good") is None
    life.runs_alone("good")
    life.ended("good")
    assert life.careful
    for _ in range(2):
        assert life.guilt("poison") is None
        life.runs_alone("poison")
        life = CarefulStart(tmp_path / "deaths", clock)
    problem = life.guilt("poison")
    assert problem is not None
    assert problem.code == "SIDECAR_DIED"


def test_once_all_have_had_their_time_to_come_again_it_is_over(tmp_path: Path, clock: Clock) -> None:
    life = died_often(tmp_path / "deaths", clock)
    clock.now += LASTING_S
    life.guilt("late")
    life.guilt("later")
    life.ended("late")
    assert life.careful
    life.ended("later")
    assert not life.careful
    assert not CarefulStart(tmp_path / "deaths", clock).careful


def test_what_is_finished_between_deaths_is_no_reason_to_begin_the_count_anew(tmp_path: Path, clock: Clock) -> None:
    for _ in range(CAREFUL_AFTER + 1):
        life = CarefulStart(tmp_path / "deaths", clock)
        life.ended("good")
    assert life.careful


def test_a_life_that_lasts_begins_the_count_anew(tmp_path: Path, clock: Clock) -> None:
    for _ in range(CAREFUL_AFTER):
        life = CarefulStart(tmp_path / "deaths", clock)
    assert not life.careful
    clock.now += LASTING_S
    life.ended("good")
    for _ in range(CAREFUL_AFTER - 1):
        assert not CarefulStart(tmp_path / "deaths", clock).careful
    assert CarefulStart(tmp_path / "deaths", clock).careful
