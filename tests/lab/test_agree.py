"""lab/agree.py: both profilers of one program agree, captures of two builds stand apart."""

import lzma
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.lab.test_run import LAB

FIXTURES = Path(__file__).parents[1] / "fixtures"


@pytest.fixture
def captures(tmp_path: Path) -> Path:
    for packed in (
        *(FIXTURES / "torch" / "2.11").glob("ncclep.rank*.json.xz"),
        FIXTURES / "nsys" / "2025.3" / "ncclep.sqlite.xz",
    ):
        with lzma.open(packed) as source, (tmp_path / packed.stem).open("wb") as target:
            shutil.copyfileobj(source, target)
    return tmp_path


def agree(monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    monkeypatch.syspath_prepend(LAB)
    monkeypatch.setattr(sys, "argv", ["agree.py", str(folder), str(folder)])
    import agree  # type: ignore[import-not-found]

    return int(agree.main())


def test_both_profilers_of_one_program_agree(
    captures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert agree(monkeypatch, captures) == 0
    out, err = capsys.readouterr()
    assert out.startswith("## The same program\n")
    assert "\n| ncclep | 104.3 / 104.5 | 28.0 / 28.0 | 7.2 / 7.2 | 1300.0 / 1300.0 |" in out
    assert err == "1 pairs of one program, 0 of other builds: 0 values differ\n"


def test_captures_with_other_kernels_are_not_judged(
    captures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(captures / "ncclep.sqlite") as report:
        report.execute(
            "DELETE FROM CUPTI_ACTIVITY_KIND_RUNTIME WHERE nameId IN"
            " (SELECT id FROM StringIds WHERE value LIKE 'cudaStreamSynchronize%')"
        )
    assert agree(monkeypatch, captures) == 0
    out, err = capsys.readouterr()
    assert out.startswith("## Other builds of the program: only collectives judged\n")
    assert err == "0 pairs of one program, 1 of other builds: 0 values differ\n"


def test_collectives_of_another_family_are_named(
    captures: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with sqlite3.connect(captures / "ncclep.sqlite") as report:
        report.execute(
            "UPDATE StringIds SET value = 'somebody_else' WHERE value LIKE 'nccl_ep_jit_ht_%'"
        )
    assert agree(monkeypatch, captures) == 1
    assert " ep_a2a a step**" in capsys.readouterr().out
