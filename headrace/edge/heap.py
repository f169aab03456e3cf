"""How much freed memory the C library keeps.

A body of 64 KiB is copied a dozen times on its way through a process, each time into memory of its own. With glibc's
defaults much of that goes back to the system and comes again page by page, zeroed by the kernel: an eighth of the
processor time of such messages.
"""

from __future__ import annotations

MMAP_FROM_BYTES = 8 * 1024 * 1024
"""Larger pieces are mapped by themselves, and given back when they are freed."""
KEEP_BYTES = 8 * 1024 * 1024
"""So much freed memory at the heap's end is kept for the next."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """For the calling process and what it forks; nothing where the C library is another."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, MMAP_FROM_BYTES)
        mallopt(_M_TRIM_THRESHOLD, KEEP_BYTES)
