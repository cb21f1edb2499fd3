"""Keeps the C library from holding on to memory that large tables have given back."""

import ctypes
import gc
import sys

_M_ARENA_MAX = -8  # malloc.h of glibc


def use_one_arena() -> None:
    """Lets all threads of this program allocate from one heap.

    With a heap for each thread, glibc keeps what one thread freed from the others: measuring two
    ranks of a 465 MB export side by side took 0.1 GB more, and longer. For programs only: a library
    must not decide this for its host. Without glibc nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(_M_ARENA_MAX, 1)


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
