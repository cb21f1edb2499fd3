"""`python -m moe_advisor` is the same as `moe-advisor`."""

import sys

from moe_advisor import interrupts


def start() -> None:
    """Runs the command line; a signal finds its handler also while the program is imported."""
    with interrupts.handled():
        try:
            code = _code()
            interrupts.end()
        except KeyboardInterrupt:
            interrupts.end()
            sys.stderr.write(interrupts.SAID)
            code = interrupts.INTERRUPTED
        interrupts.leave(code)


def _code() -> int:
    from moe_advisor.cli import main

    try:
        main()
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(done.code is not None)
    return 0


if __name__ == "__main__":
    start()
