"""Ctrl-C and SIGTERM: one clean end, however often and at whatever moment they come.

The first signal raises KeyboardInterrupt in the main thread; further ones, by which impatient
people and schedulers underline the first, would break into the clean-up and are left out.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM)

PATIENCE_S = 10.0
"""A clean-up takes milliseconds, two seconds where a worker must be killed. After this a further
signal raises again: the first one may be lost in code that swallows exceptions."""

AGAIN_S = 0.02
"""A signal that Python lost in a finaliser is raised again after this: not inside the same one."""

WAIT_S = 1.0
"""The longest wait of the main thread at a time: a signal that comes in the moment before a wait
does not end it, and is only noticed when it is over."""

INTERRUPTED = 130
"""The exit code: 128 and the number of SIGINT, also for SIGTERM."""

SAID = "moe-advisor: interrupted\n"


class _State:
    """What the handlers know; there is one process, so there is one state."""

    depth = 0
    ended = False
    asked = False
    raised_at = -PATIENCE_S
    held = 0
    waits = False
    number = int(signal.SIGTERM)


def asked() -> bool:
    """Whether a signal asked the running program to stop, noticed or lost."""
    return _State.asked


def check() -> None:
    """Raises KeyboardInterrupt where a signal came and was lost: what follows must not happen."""
    if _State.asked:
        raise KeyboardInterrupt


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Lets no signal break into the work inside; it is raised at its end."""
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
        if _State.waits and not _State.held:
            _State.waits = False
            _raise()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """Inside, signals end the program as said above. Elsewhere than in the main thread, nothing.

    A signal that the program was started to ignore, as in the background of a script, stays so.
    """
    if _State.depth or threading.current_thread() is not threading.main_thread():
        yield
        return
    _State.asked, _State.raised_at, _State.waits = False, -PATIENCE_S, False
    _State.depth += 1
    hook = sys.unraisablehook
    sys.unraisablehook = _again(hook)
    before = {
        number: signal.signal(number, _on_signal)
        for number in SIGNALS
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        _State.depth -= 1
        sys.unraisablehook = hook
        if not _State.ended:
            for number, handler in before.items():
                signal.signal(number, handler)


def deaf(number: int, frame: FrameType | None) -> None:
    """A handler that does nothing.

    Of a signal that is on its way when its number is set to be ignored Python prints an error.
    """
    del number, frame


def end() -> None:
    """The work is done or given up: a signal has nothing to stop any more."""
    _State.ended = True
    for number in SIGNALS:
        signal.signal(number, deaf)


def leave(code: int) -> NoReturn:
    """Ends the program with `code`, without Python's own clean-up where that would wait.

    An interrupted program, and one that leaves a query behind in a thread, has nothing to tidy up.
    """
    others = [one for one in threading.enumerate() if one is not threading.main_thread()]
    if code == INTERRUPTED or others:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _on_signal(number: int, frame: FrameType | None) -> None:
    del frame
    _State.asked, _State.number = True, number
    if _State.held:
        _State.waits = True
    else:
        _raise()


def _raise() -> None:
    now = time.monotonic()
    if now - _State.raised_at >= PATIENCE_S:
        _State.raised_at = now
        raise KeyboardInterrupt


def _again(hook: Callable[[Any], object]) -> Callable[[Any], object]:
    """Python prints and forgets an exception that meets a finaliser or callback: not this one."""

    def found(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            hook(unraisable)
        elif unraisable.exc_type is KeyboardInterrupt:
            _State.held += 1  # raised in here it would be lost like the first one
            try:
                threading.Thread(target=once_more, name="interrupt", daemon=True).start()
            finally:
                _State.held -= 1

    def once_more() -> None:
        time.sleep(AGAIN_S)
        while _State.held:  # on a busy machine the start of this thread may last
            time.sleep(AGAIN_S)
        if _State.depth and not _State.ended:
            _State.raised_at = -PATIENCE_S
            signal.pthread_kill(threading.main_thread().ident or 0, _State.number)

    return found
