"""Which modules a preloaded process had imported first: those that every child of it may see."""

from __future__ import annotations

import sys

_first: frozenset[str] = frozenset()


def note_first() -> None:
    """What is imported now is for every child."""
    global _first
    _first = frozenset(sys.modules)


def forget_later() -> None:
    """Forgets what was imported since, but for the standard library: the next import loads it anew, or something
    else of that name."""
    for name in [name for name in sys.modules if name not in _first]:
        if name.partition(".")[0] not in sys.stdlib_module_names:
            del sys.modules[name]
