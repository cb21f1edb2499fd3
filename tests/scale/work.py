"""Functions that worker processes import by name."""

import os
import signal
import time
from pathlib import Path

from moe_advisor.errors import ConfigError, InputError


def double(number: int) -> int:
    if number == 13:
        raise InputError("thirteen.json: no trace")
    return 2 * number


def slow_start(number: int) -> int:
    """Later tasks end first."""
    time.sleep(0.3 if number == 0 else 0.0)
    return number


def die_once(task: tuple[str, int]) -> int:
    """Task 3 kills its process the first time."""
    folder, number = task
    mark = Path(folder) / "died"
    if number == 3 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def always_die(number: int) -> int:
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def hang(number: int) -> int:
    if number == 1:
        time.sleep(1200)
    return number


def bad_option(number: int) -> int:
    raise ConfigError("--steps 9: selects none")
