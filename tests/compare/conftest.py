"""Results of the real captures, each made once for all tests of this folder."""

from collections.abc import Callable
from pathlib import Path

import pytest

from moe_advisor.analysis import Options, analyze
from moe_advisor.result import Result


@pytest.fixture(scope="session")
def result(real_trace: Callable[[str], list[Path]]) -> Callable[..., Result]:
    """The result of a capture such as `nsys/base`, of some of its steps if told."""
    known: dict[tuple[str, str | None], Result] = {}

    def made(name: str, steps: str | None = None) -> Result:
        if (name, steps) not in known:
            paths = [str(path) for path in real_trace(name)]
            known[name, steps] = analyze(paths, Options(steps=steps))
        return known[name, steps]

    return made
