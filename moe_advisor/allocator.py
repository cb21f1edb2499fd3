"""Keeps the C library from holding on to memory that large tables have given back."""

import ctypes
import gc
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h of glibc

_KEPT_BYTES = 128 << 20
"""So much that was freed at the heap's end stays there for what comes next. Memory that the system
hands out anew it clears first, a fifth of an analysis of 465 MB where glibc decides."""

_MAPPED_BYTES = 32 << 20
"""From here on an array is a mapping of its own, gone when it is freed; 32 MB is glibc's limit."""


def use_one_arena() -> None:
    """Lets all threads of this program allocate from one heap, which keeps what is freed.

    With a heap for each thread, glibc keeps what one thread freed from the others: measuring two
    ranks of a 465 MB export side by side took 0.1 GB more, and longer. For programs only: a library
    must not decide this for its host. Without glibc nothing happens.

    numpy's own threads, which only products of large matrices would use, are not started: they
    spin for a while. To be called before numpy is imported.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)


def trim() -> None:
    """Gives memory that was freed back to the system, where the C library keeps it (glibc)."""
    if sys.platform.startswith("linux"):
        give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if give_back:
            give_back(0)


def collect_rarely() -> None:
    """Looks for cyclic garbage less often, and never among what is imported by now.

    Tables are freed by count; the collector found next to nothing and took 3 % of an analysis and a
    sixth of its imports. To be called before these and, for what they brought, again after them.
    """
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
