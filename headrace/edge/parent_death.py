"""Ties a process to its parent: when the parent dies, however it dies, the kernel signals this one.

Linux only (prctl PR_SET_PDEATHSIG, see prctl(2)); the setting survives execve. Run as a script it ties
itself and becomes the given command, which is how programs that are not ours (nats-server, components in
other languages) are tied:

    python -I -S headrace/edge/parent_death.py SIGNAL PARENT_PID COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import os
import signal
import sys

PARENT_PID_VARIABLE = "HEADRACE_PARENT_PID"
TIMER_SLACK_VARIABLE = "HEADRACE_TIMER_SLACK_US"
"""How much later than asked for the kernel may wake the threads of the command (prctl PR_SET_TIMERSLACK), so that it
wakes them less often; microseconds, none: as the kernel has it (50)."""
_PR_SET_PDEATHSIG = 1
_PR_SET_TIMERSLACK = 29
_PR_SET_CHILD_SUBREAPER = 36


def _prctl(option: int, value: int) -> None:
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


def tie_to_parent(parent_pid: int | None = None, death_signal: int = signal.SIGKILL) -> None:
    """Asks for the signal at the parent's death; exits at once if the parent is gone already.

    `parent_pid` defaults to HEADRACE_PARENT_PID; without either nothing is tied.
    """
    if not sys.platform.startswith("linux"):
        return
    expected = parent_pid if parent_pid is not None else int(os.environ.get(PARENT_PID_VARIABLE) or 0)
    if expected == 0:
        return
    _prctl(_PR_SET_PDEATHSIG, int(death_signal))
    if os.getppid() != expected:
        os._exit(111)


def parent_is_gone() -> bool:
    """Whether the parent this process was tied to has died."""
    expected = int(os.environ.get(PARENT_PID_VARIABLE) or 0)
    return expected != 0 and os.getppid() != expected


def become_subreaper() -> None:
    """Orphaned descendants become children of this process, so that it can end and reap them."""
    if sys.platform.startswith("linux"):
        _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def tied_command(command: list[str], death_signal: int = signal.SIGKILL) -> list[str]:
    """The command line that runs `command` tied to the calling process."""
    return [sys.executable, "-I", "-S", __file__, str(int(death_signal)), str(os.getpid()), *command]


def _slacken_timers() -> None:
    slack = os.environ.pop(TIMER_SLACK_VARIABLE, "")
    if slack.isdigit() and sys.platform.startswith("linux"):
        _prctl(_PR_SET_TIMERSLACK, int(slack) * 1000)


if __name__ == "__main__":
    tie_to_parent(int(sys.argv[2]), int(sys.argv[1]))
    _slacken_timers()
    os.execvp(sys.argv[3], sys.argv[3:])  # noqa: S606
