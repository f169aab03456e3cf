"""Named places in the life of a message where a test may make this process fail; off unless HEADRACE_FAULTS is set.

    HEADRACE_FAULTS="before-ack:kill@7"              kill -9 of itself at the 7th pass
    HEADRACE_FAULTS="after-publish:pause=0.5,before-reply:stop@2"
    HEADRACE_FAULTS="@DIR"                           the same text, read from DIR/<process name> while it runs;
                                                     the file is removed before its fault happens, so that a
                                                     restarted process does not fail again

Nothing on the message path knows of them: with the variable set, lane and component stream are wrapped
(`faulty_lane`, `faulty_component_stream`); without it there is nothing to ask, not even a flag.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.edge.structured_log import get_logger
from headrace.model.errors import InvalidInput

log = get_logger(__name__)

VARIABLE = "HEADRACE_FAULTS"
MAX_PAUSE_S = 600.0

POINTS: Mapping[str, str] = {
    "before-fetch": "credit is given back; the next pull request is not made yet",
    "after-fetch": "messages arrived from the broker; the delivery logic has not seen them",
    "before-deliver": "inputs are about to be handed to the component's stream",
    "after-deliver": "inputs were handed to the component's stream",
    "before-return": "the component has ended a call; the delivery logic has not heard",
    "after-return": "the end of a call was handled; what it leads to leaves in this turn of the loop",
    "before-publish": "a message is about to be published; nothing is written",
    "after-publish": "a message was written to the broker; its answer was not read",
    "before-publish-ack": "the broker has stored a message; nobody here knows",
    "after-publish-ack": "the broker has stored a message and its sender knows",
    "before-commit": "outputs of a slot's inputs and its cursor are about to be stored together; nothing is written",
    "after-commit": "such a batch was written to the broker; its answer was not read",
    "before-commit-ack": "the broker has stored such a batch; nobody here knows",
    "after-commit-ack": "the broker has stored such a batch and the slot knows",
    "before-cursor": "a slot's cursor is about to be read",
    "after-cursor": "a slot's cursor was read; nobody has acted on it",
    "before-reply": "a reply to a waiting caller is about to be written",
    "after-reply": "a reply was written to the broker",
    "before-ack": "an input is about to be acknowledged; nothing is written",
    "after-ack": "the acknowledgement of an input was written",
    "before-ack-confirm": "the broker has confirmed an acknowledgement; nobody here knows",
    "after-ack-confirm": "the broker has confirmed an acknowledgement and it was noted",
    "before-dead-letter": "a dead letter is about to be published; nothing is written",
    "after-dead-letter": "the broker has stored a dead letter and its sender knows",
}
"""Name to what is true there. `before-ack` with `stop` is the moment in which a process holds the most."""

FAILING = frozenset(
    {"before-publish", "before-publish-ack", "before-ack", "before-ack-confirm", "before-dead-letter"}
    | {"before-commit", "before-commit-ack"}
)
"""Points at which `error` means something: the broker's answer is lost (before-…-ack, -confirm) or never asked for."""


class FaultInjected(Exception):
    """Raised at a point by the action `error`; the wrappers turn it into the error of their port."""


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the `at_pass`-th pass of a point: kill, stop, pause (`pause_s` seconds), error."""

    point: str
    action: str
    at_pass: int = 1
    pause_s: float = 0.0


def parse_faults(text: str) -> tuple[Fault, ...]:
    """`POINT:ACTION[@PASS],...`; InvalidInput names what is wrong, and all points when one is unknown."""
    return tuple(_parse(item.strip()) for item in text.split(",") if item.strip())


def _parse(item: str) -> Fault:
    point, _, rest = item.partition(":")
    action, _, count = rest.partition("@")
    action, _, seconds = action.partition("=")
    if point not in POINTS:
        raise _wrong(item, f"names no fault point; there are {', '.join(POINTS)}")
    if action not in ("kill", "stop", "pause", "error"):
        raise _wrong(item, f"{action!r} is no action; use kill, stop, pause=SECONDS or error")
    if action == "error" and point not in FAILING:
        raise _wrong(item, f"{point} cannot fail; error is for {', '.join(sorted(FAILING))}")
    if count and not (count.isdigit() and int(count) > 0):
        raise _wrong(item, f"{count!r} is no number of a pass; they count from 1")
    pause_s = 0.0
    if action == "pause":
        with contextlib.suppress(ValueError):
            pause_s = float(seconds)
        if not 0.0 < pause_s <= MAX_PAUSE_S:
            raise _wrong(item, f"pause needs seconds, above 0, at most {MAX_PAUSE_S:g}: pause=0.5")
    elif seconds:
        raise _wrong(item, f"{action} takes no value")
    return Fault(point, action, int(count) if count else 1, pause_s)


def _wrong(item: str, problem: str) -> InvalidInput:
    next_step = "Write for example before-ack:kill@7; headrace/edge/fault_points.py has the table"
    return InvalidInput.at(VARIABLE, item, problem, next_step=next_step)


class FaultPlan:
    """Counts passes and carries out what is due. Each fault happens once. `act` is what tests replace."""

    def __init__(
        self, faults: tuple[Fault, ...] = (), *, file: Path | None = None, act: Callable[[Fault], None] | None = None
    ) -> None:
        self._file = file
        self._read_at = 0
        self._act = act or carry_out
        self._faults = faults
        self._passes: dict[str, int] = {}

    def reach(self, point: str) -> None:
        """A pass of a point: may not return (kill), may take long (stop, pause), may raise FaultInjected."""
        if self._file is not None:
            self._look(self._file)
        if not self._faults:
            return
        self._passes[point] = passes = self._passes.get(point, 0) + 1
        for fault in self._faults:
            if fault.point == point and fault.at_pass == passes:
                self._faults = tuple(other for other in self._faults if other is not fault)
                if self._file is not None:
                    self._file.unlink(missing_ok=True)
                self._act(fault)
                return

    def _look(self, file: Path) -> None:
        try:
            changed_at = file.stat().st_mtime_ns
        except FileNotFoundError:
            self._faults = ()  # taken back
            return
        if changed_at != self._read_at:
            self._read_at = changed_at
            self._faults, self._passes = parse_faults(file.read_text()), {}


def carry_out(fault: Fault) -> None:
    """The real thing, with a line on stderr before it."""
    print(f"fault point {fault.point}: {fault.action} at pass {fault.at_pass}", file=sys.stderr, flush=True)
    if fault.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif fault.action == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif fault.action == "pause":
        time.sleep(fault.pause_s)
    else:
        raise FaultInjected(fault.point)


_installed: list[FaultPlan] = []


def install_faults(environ: Mapping[str, str], process: str) -> None:
    """Once per process, before anything connects; `process` is the instance's name, or `gateway`. Does nothing
    unless the variable is set; InvalidInput when it cannot be read."""
    text = environ.get(VARIABLE, "")
    if not text:
        return
    log.warning("fault points are on: this process may be made to fail", faults=text, process=process)
    _installed[:] = [
        FaultPlan(file=Path(text[1:]) / process) if text.startswith("@") else FaultPlan(parse_faults(text))
    ]


def installed_faults() -> FaultPlan | None:
    """The plan of this process; None (nearly always) when faults are off."""
    return _installed[0] if _installed else None
