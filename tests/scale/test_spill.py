"""Tables of very large inputs wait in files: the numbers stay the same and nothing is left."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest

from moe_advisor import analysis, spill
from moe_advisor.ingest import nsys_build
from moe_advisor.output.json_output import encode

FRAME = pl.DataFrame(
    {"time": [5, 1, 2**40], "kind": [0, 255, 1], "graph": [True, False, True]},
    schema={"time": pl.Int64, "kind": pl.UInt8, "graph": pl.Boolean},
)


def test_a_spilled_table_is_the_same_before_and_after_its_memory_is_given_back() -> None:
    frame = spill.spilled(pl.concat([FRAME, FRAME], rechunk=False))
    assert frame.equals(pl.concat([FRAME, FRAME]))
    spill.release()
    assert frame.equals(pl.concat([FRAME, FRAME]))
    assert frame.schema == FRAME.schema


def test_no_file_has_a_name_and_none_stays_when_the_table_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(spill._mirrors)
    frame = spill.spilled(FRAME)
    assert (len(spill._mirrors), list(tmp_path.iterdir())) == (before + 1, [])
    del frame
    assert len(spill._mirrors) == before


def test_without_a_temporary_folder_tables_stay_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    assert spill.spilled(FRAME) is FRAME
    assert spill.spilled(FRAME.clear()).shape == (0, 3)


def test_parts_that_several_threads_put_into_one_file_come_back_as_they_were() -> None:
    spool = spill.Spool()
    parts = [
        pl.DataFrame({"time": range(at, at + size), "code": [at % 7] * size})
        for at, size in zip(range(40), [*range(1, 40), 0], strict=True)
    ]
    with ThreadPoolExecutor(4) as pool:
        places = list(pool.map(spool.put, parts))
    assert sum(isinstance(place, spill.Spooled) for place in places) == 39
    for place, part in zip(places, parts, strict=True):
        assert spool.table(place).equals(part)


def test_without_address_space_a_spool_is_read_back(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = FRAME.drop("graph")
    spool = spill.Spool()
    place = spool.put(numbers)

    def full(*given: object, **more: object) -> None:
        raise OSError(12, "no address space")

    monkeypatch.setattr("mmap.mmap", full)
    assert spool.table(place).equals(numbers)


def test_an_export_gives_the_same_bytes_whether_its_tables_are_spilled(
    real_trace: Callable[[str], list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = real_trace("nsys/mcore_alltoall")
    expected = encode(analysis.analyze([str(path)]))
    spilled: list[int] = []

    def counted(frame: pl.DataFrame) -> pl.DataFrame:
        spilled.append(len(frame))
        return spill.spilled(frame)

    monkeypatch.setattr(nsys_build, "spilled", counted)
    monkeypatch.setattr(nsys_build, "SPILL_ROWS", 1)
    monkeypatch.setattr(analysis, "SPILL_ROWS", 1)
    assert encode(analysis.analyze([str(path)])) == expected
    assert len(spilled) == 6  # activities, calls and ranges of two ranks
