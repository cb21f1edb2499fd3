"""Every input that a fuzzing campaign found is run again: see fuzz/README.md."""

import lzma
from pathlib import Path

import pytest

from fuzz.targets import TARGETS, execute

KEPT = sorted((Path(__file__).parent / "regressions").glob("*.xz"))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_what_was_found_once_ends_in_a_result_or_a_refusal(path: Path, tmp_path: Path) -> None:
    target = path.stem.rsplit("-", 1)[0]
    assert execute(target, lzma.decompress(path.read_bytes()), tmp_path) in ("result", "refused")


def test_findings_are_kept() -> None:
    assert len(KEPT) >= 8
    assert {path.stem.rsplit("-", 1)[0] for path in KEPT} <= set(TARGETS)
