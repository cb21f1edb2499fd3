"""Exporting a .nsys-rep through the user's nsys, which a script stands in for here."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from moe_advisor.errors import InputError
from moe_advisor.ingest import nsys_report
from tests.nsys_builder import two_steps

REAL_NSYS = os.environ.get("NSYS", "nsys")  # before the tests hide the variable
HEAD = b"NVIDIA Tegra Profiler Report 2025@3@2@1-1v0\x00\x01"


@pytest.fixture
def report(tmp_path: Path) -> Path:
    folder = tmp_path / "in put"
    folder.mkdir()
    path = folder / "-run.nsys-rep"
    path.write_bytes(HEAD)
    return path


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files, to see that nothing stays there."""
    import tempfile

    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.delenv("NSYS", raising=False)
    return folder


def tool(folder: Path, body: str, version: str = "2025.3.2.1") -> Path:
    """A stand-in for nsys: logs its arguments, then runs `body` with $OUT and $BLOBS."""
    export = two_steps().write(folder / "export.sqlite")
    path = folder / "nsys"
    path.write_text(
        f"""#!/bin/sh
echo "$@" >> "{folder}/log"
if [ "$1" = --version ]; then echo "NVIDIA Nsight Systems version {version}-1v0"; exit 0; fi
for word in "$@"; do
  case "$word" in --output=*) OUT="${{word#--output=}}";; *blobs*) BLOBS=1;; esac
done
GOOD="{export}"
{body}
"""
    )
    path.chmod(0o755)
    return path


def log(folder: Path) -> list[str]:
    return (folder / "log").read_text().splitlines()


def test_a_report_is_exported_with_blobs_and_leaves_nothing_behind(
    report: Path, tmp_path: Path, scratch: Path
) -> None:
    nsys = tool(tmp_path, 'cp "$GOOD" "$OUT"; touch beside.tmp')
    loaded = nsys_report.load(report, nsys=nsys)
    assert (loaded.info.format, loaded.info.name) == ("nsys-rep", "-run.nsys-rep")
    assert loaded.ranks[0].activities.height == 5
    (command,) = log(tmp_path)
    assert "--include-blobs=true" in command
    assert list(scratch.iterdir()) == []
    assert [file.name for file in report.parent.iterdir()] == ["-run.nsys-rep"]


def test_an_option_that_the_tool_rejects_is_left_out(report: Path, tmp_path: Path) -> None:
    body = """if [ -n "$BLOBS" ]; then
  echo "unrecognised option '--include-blobs=true'" >&2; exit 1
fi
cp "$GOOD" "$OUT" """
    loaded = nsys_report.load(report, nsys=tool(tmp_path, body))
    assert len(loaded.ranks) == 1
    assert ["blobs" in line for line in log(tmp_path)] == [True, False]


def test_a_tool_older_than_the_report_is_named(report: Path, tmp_path: Path, scratch: Path) -> None:
    nsys = tool(tmp_path, "echo 'Exportation error' >&2; exit 1", version="2023.4.4.54")
    with pytest.raises(InputError, match=r"written by nsys 2025\.3\.2, which nsys 2023\.4\.4"):
        nsys_report.load(report, nsys=nsys)
    assert list(scratch.iterdir()) == []


def test_a_failed_export_is_one_line_without_paths(report: Path, tmp_path: Path) -> None:
    body = f"""printf 'Processing [1%%]\\rProcessing [2%%]\\n'
echo 'Error: cannot open {report} in /home/somebody/private' >&2; exit 3"""
    with pytest.raises(InputError) as caught:
        nsys_report.load(report, nsys=tool(tmp_path, body))
    said = str(caught.value)
    assert said.startswith("-run.nsys-rep: nsys export failed (Error: cannot open -run.nsys-rep")
    assert str(tmp_path) not in said
    assert "/home" not in said
    assert "\n" not in said


def test_a_tool_that_succeeds_without_writing_has_failed(report: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="export failed"):
        nsys_report.load(report, nsys=tool(tmp_path, "exit 0"))


def test_a_cached_export_is_used_again_until_the_report_changes(
    report: Path, tmp_path: Path
) -> None:
    nsys, cache = tool(tmp_path, 'cp "$GOOD" "$OUT"'), tmp_path / "cache"
    for _ in range(2):
        nsys_report.load(report, nsys=nsys, cache=cache)
    assert len(log(tmp_path)) == 1
    assert len(list(cache.iterdir())) == 1
    elsewhere = tmp_path / "copy.nsys-rep"
    elsewhere.write_bytes(report.read_bytes())
    nsys_report.load(elsewhere, nsys=nsys, cache=cache)
    assert len(log(tmp_path)) == 1
    report.write_bytes(HEAD + b"more")
    nsys_report.load(report, nsys=nsys, cache=cache)
    assert len(log(tmp_path)) == 2


def test_an_export_that_is_thrown_out_while_it_is_read_is_still_read(
    report: Path, tmp_path: Path
) -> None:
    nsys, cache = tool(tmp_path, 'cp "$GOOD" "$OUT"'), tmp_path / "cache"
    nsys_report.load(report, nsys=nsys, cache=cache)
    with nsys_report._exported(report, nsys, cache) as export:
        (kept,) = cache.glob("nsys-*.sqlite")
        kept.unlink()
        assert export.stat().st_size > 0
    assert not list(cache.iterdir())
    assert len(log(tmp_path)) == 1


def test_nsys_is_looked_for_in_the_option_the_variable_and_the_path(tmp_path: Path) -> None:
    nsys = tool(tmp_path, "exit 0")
    elsewhere = {"PATH": str(tmp_path), "NSYS": "/nowhere/nsys"}
    assert nsys_report.find_nsys(nsys, {}) == nsys
    assert nsys_report.find_nsys(None, {"NSYS": str(nsys), "PATH": ""}) == nsys
    assert nsys_report.find_nsys(None, {"PATH": str(tmp_path)}) == nsys
    with pytest.raises(InputError, match=r"\$NSYS"):
        nsys_report.find_nsys(None, elsewhere)
    with pytest.raises(InputError, match="--nsys"):
        nsys_report.find_nsys(tmp_path / "missing", elsewhere)
    with pytest.raises(InputError, match="nsys was not found"):
        nsys_report.find_nsys(None, {"PATH": "/nowhere"})


def test_a_report_is_recognised_by_its_first_words(report: Path, tmp_path: Path) -> None:
    named = report.rename(tmp_path / "x.bin")
    assert nsys_report.sniff(named)
    text = tmp_path / "notes.nsys-rep"
    text.write_text("not a report\n")
    assert not nsys_report.sniff(text)
    assert not nsys_report.sniff(two_steps().write(tmp_path / "y.nsys-rep"))


@pytest.mark.nsys
def test_a_real_nsys_exports_its_own_report(tmp_path: Path) -> None:
    nsys = shutil.which(REAL_NSYS)
    if nsys is None:
        pytest.skip("nsys is neither on PATH nor in $NSYS")
    made = tmp_path / "tiny"
    subprocess.run(
        [nsys, "profile", "-t", "nvtx", "-s", "none", "--cpuctxsw=none", "-o", made, "true"],
        check=False,
        capture_output=True,
        cwd=tmp_path,
        timeout=120,
    )
    importer = Path(nsys).with_name("nsys-import")
    if made.with_suffix(".qdstrm").exists() and importer.exists():
        subprocess.run(
            [importer, made.with_suffix(".qdstrm")], check=True, capture_output=True, cwd=tmp_path
        )
    report = made.with_suffix(".nsys-rep")
    if not report.exists():
        pytest.skip("this nsys could not make a report here")
    assert nsys_report.sniff(report)
    loaded = nsys_report.load(report, nsys=Path(nsys))
    assert loaded.info.producer is not None
    assert loaded.info.producer.startswith("Nsight Systems 20")
    assert [issue.id for issue in loaded.issues] == ["no-gpu-activity"]
