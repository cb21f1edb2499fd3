"""Fixtures shared by all tests: the real captures, unpacked once per session."""

import lzma
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

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
