"""What /proc says of a process on its way out."""

from __future__ import annotations

import os

from headrace.edge.process_table import is_ending, is_zombie


def test_a_process_that_nobody_has_reaped_is_on_its_way_out_and_one_that_works_is_not() -> None:
    pid = os.posix_spawn("/bin/true", ["true"], {})
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert is_zombie(pid)
        assert is_ending(pid)
    finally:
        os.waitpid(pid, 0)
    assert not is_ending(pid)
    assert not is_ending(os.getpid())
