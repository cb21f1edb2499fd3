"""Fixtures shared by all tests: the real captures, unpacked once per session.

What is set here keeps the outcome of a test from depending on the machine: its speed, its free CPU,
and what its environment holds.
"""

import lzma
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# The same examples in every run, and no time limit on one: a busy machine is not a failure.
hypothesis.settings.register_profile(
    "everywhere",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("everywhere")

# In the background of a script Ctrl-C is ignored, and so it would be in all that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

OURS = ("MOE_ADVISOR_REQUIRE_BROWSER", "MOE_ADVISOR_REQUIRE_DOCS", "MOE_ADVISOR_HOSTILE")
"""Variables that steer the tests; all others with our name would steer what is tested."""

for _name in tuple(os.environ):
    if _name.startswith("MOE_ADVISOR_") and _name not in OURS:
        del os.environ[_name]
for _name in ("GITHUB_STEP_SUMMARY", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES"):
    os.environ.pop(_name, None)

FIXTURES = Path(__file__).parent / "fixtures"
DEMO = Path(__file__).parent.parent / "moe_advisor" / "demo"


@pytest.fixture(scope="session")
def real_trace(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[Path]]:
    """Gives the files of a capture such as `nsys/base` or `torch/skew`, unpacked."""
    folder = tmp_path_factory.mktemp("real")
    known: dict[str, list[Path]] = {}

    def unpacked(name: str) -> list[Path]:
        if name not in known:
            profiler, variant = name.split("/")
            if profiler == "torch" and variant == "shm_balanced":
                known[name] = sorted(DEMO.glob("shm_balanced.rank*.json.gz"))
            else:
                version = "2025.3" if profiler == "nsys" else "2.11"
                pattern = (
                    f"{variant}.sqlite.xz" if profiler == "nsys" else f"{variant}.rank*.json.xz"
                )
                known[name] = []
                for packed in sorted((FIXTURES / profiler / version).glob(pattern)):
                    target = folder / profiler / packed.stem
                    target.parent.mkdir(exist_ok=True)
                    with lzma.open(packed) as source, target.open("wb") as out:
                        shutil.copyfileobj(source, out)
                    known[name].append(target)
        assert known[name], f"no fixture for {name}"
        return known[name]

    return unpacked
