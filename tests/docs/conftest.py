"""The programs that documented commands call, as this checkout has them."""

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "docs"))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bin")
    for name, call in (("moe-advisor", " -m moe_advisor"), ("python", "")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable}{call} "$@"\n')
        program.chmod(0o755)
    kept = {name: os.environ[name] for name in ("HOME", "LANG") if name in os.environ}
    path = f"{folder}:/usr/local/bin:/usr/bin:/bin"
    return {**kept, "PATH": path, "PYTHONPATH": str(ROOT), "MOE_ADVISOR_SETTINGS": ""}
