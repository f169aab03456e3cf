"""How the embedded server shares the machine: by its size, and a person's own settings win."""

from __future__ import annotations

import pytest

from headrace.edge.broker_process import runtime_settings


@pytest.mark.parametrize(("processors", "threads"), [(1, "1"), (2, "1"), (3, None), (64, None)])
def test_one_thread_where_there_are_few_processors(processors: int, threads: str | None) -> None:
    assert runtime_settings({}, processors).get("GOMAXPROCS") == threads


def test_what_the_environment_sets_is_left_alone() -> None:
    assert runtime_settings({"GOGC": "50", "GOMAXPROCS": "2", "PATH": "/bin"}, 2) == {"GOMEMLIMIT": "1GiB"}
