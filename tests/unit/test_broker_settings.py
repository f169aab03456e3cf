"""How the embedded server shares the machine: by its size, and a person's own settings win."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.edge.broker_process import runtime_settings
from headrace.edge.parent_death import TIMER_SLACK_VARIABLE, tied_command

SLACKS = [("fast", 2, "2000"), ("fast", 3, None), ("durable", 2, None)]
PROGRAM = """
import os
print(open("/proc/self/timerslack_ns").read().strip(), os.environ.get("HEADRACE_TIMER_SLACK_US"))
"""


@pytest.mark.parametrize(("processors", "threads"), [(1, "1"), (2, "1"), (3, None), (64, None)])
def test_one_thread_where_there_are_few_processors(processors: int, threads: str | None) -> None:
    assert runtime_settings({}, processors=processors).get("GOMAXPROCS") == threads


@pytest.mark.parametrize(("profile", "processors", "slack"), SLACKS)
def test_its_timers_have_slack_where_nothing_waits_for_a_disk(profile: str, processors: int, slack: str | None) -> None:
    assert runtime_settings({}, profile, processors).get(TIMER_SLACK_VARIABLE) == slack


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prctl")
@pytest.mark.parametrize(("said", "found"), [("2000", 2_000_000), ("", 0), ("much", 0)])
def test_slack_is_set_and_not_passed_on(said: str, found: int) -> None:
    told = subprocess.run(
        tied_command([sys.executable, "-c", PROGRAM]),
        env={**os.environ, TIMER_SLACK_VARIABLE: said},
        capture_output=True,
        text=True,
        check=True,
    )
    present = Path("/proc/self/timerslack_ns").read_text().strip()
    assert told.stdout.split() == [str(found or present), "None"]


def test_what_the_environment_sets_is_left_alone() -> None:
    assert runtime_settings({"GOGC": "50", "GOMAXPROCS": "2", "PATH": "/bin"}, "durable", 2) == {"GOMEMLIMIT": "1GiB"}
