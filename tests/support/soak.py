"""Long runs: how much of them each test does, and what is said of them all together.

`make soak ROUNDS=n` sets HEADRACE_SOAK_ROUNDS=n. The fault matrix does n rounds; every other test does one of its own
for each so many of them, by what its round costs (`rounds`): 2 000 take about two hours on two cores. A line a minute
says how far it is, one at the end what was judged. A test that is run by itself goes by the same shares.
"""

from __future__ import annotations

import os
import threading
import time
from dataclasses import dataclass

import pytest

ASKED = int(os.environ.get("HEADRACE_SOAK_ROUNDS", "0"))
EVERY_S = 60.0


def rounds(one_in: int, short: int = 0) -> int:
    """How many a test does: one for each `one_in` of those asked for, and at least one; `short` without a soak."""
    return max(1, ASKED // one_in) if ASKED else short


@dataclass
class SoakTotals:
    """What all tests of this process have done and found so far."""

    rounds: int = 0
    kills: int = 0
    simulated: int = 0
    judged: int = 0
    lost: int = 0
    duplicated: int = 0
    disordered: int = 0
    wrong: int = 0

    def round(self, *, kills: int = 1) -> None:
        """A fault round is over."""
        self.rounds += 1
        self.kills += kills

    def judge(self, judged: int, *, lost: int, duplicated: int, disordered: int = 0, wrong: int = 0) -> None:
        """A ledger was compared: of so many messages asked for, so many went wrong."""
        self.judged += judged
        self.lost += lost
        self.duplicated += duplicated
        self.disordered += disordered
        self.wrong += wrong

    def line(self) -> str:
        return (
            f"{self.rounds} rounds, {self.kills} kills, {self.simulated} simulated runs, {self.judged} messages "
            f"judged: lost {self.lost}, duplicated {self.duplicated}, out of order {self.disordered}, "
            f"wrong {self.wrong}"
        )


TOTALS = SoakTotals()


class SoakReport:
    """A pytest plugin: the line a minute, and the last one."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        self._began = time.monotonic()
        self._test = ""
        self._done: dict[str, int] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._tell, name="soak report", daemon=True)
        self._thread.start()

    def _tell(self) -> None:
        while not self._over.wait(EVERY_S):
            print(f"\nsoak, {self._line()}; now {self._test}", file=self._out, flush=True)

    def _line(self) -> str:
        tests = ", ".join(f"{count} {outcome}" for outcome, count in sorted(self._done.items()))
        return f"{(time.monotonic() - self._began) / 60:.0f} min: {TOTALS.line()}; tests: {tests or 'none yet'}"

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._test = nodeid

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._done[report.outcome] = self._done.get(report.outcome, 0) + 1

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.write_line(f"soak of {ASKED} rounds, the end, {self._line()}")

    def pytest_unconfigure(self) -> None:
        self._over.set()
        self._thread.join()
        self._out.close()
