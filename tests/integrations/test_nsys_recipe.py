"""The recipe for NVIDIA's framework: in a stand-in for it, and in the real one where there is one."""

import argparse
import importlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moe_advisor.analysis import analyze
from moe_advisor.output import json_output
from moe_advisor.recipe import FOLDER, NAME, NEEDED
from tests.nsys_builder import two_steps

ROOT = Path(__file__).parent.parent.parent
REAL_NSYS = os.environ.get("NSYS") or shutil.which("nsys") or "~/.cache/nsys/nsys"

STAND_IN = {
    "__init__": "",
    "nsys_constants": "NSYS_EXE_NAME = 'nsys'",
    "log": "import logging\nlogger = logging.getLogger('nsys_recipe')",
    "lib/__init__": "",
    "lib/exceptions": "class ValueError(Exception): pass",
    "lib/nsys_path": (
        "from nsys_recipe.lib import exceptions\n"
        "def find_installed_file(name): raise exceptions.ValueError(name)"
    ),
    "lib/args": "class Option: INPUT, OUTPUT, FORCE_OVERWRITE = '--input', '--output', '--force'",
    "lib/recipe": """
import argparse, os, shutil
class Parser(argparse.ArgumentParser):
    def add_recipe_argument(self, name, **more):
        self.add_argument(name, **({'nargs': '+'} if name == '--input' else {}), **more)
class Recipe:
    recipe_dir = recipe_name = None
    def __init__(self, parsed_args):
        self._parsed_args, self._output_files, self._analysis_dict = parsed_args, {}, {}
    def run(self, context): pass
    def add_output_file(self, name, filetype=None):
        os.makedirs(self._parsed_args.output, exist_ok=True)
        return os.path.join(self._parsed_args.output, name)
    def create_notebook(self, name, dir_path):
        shutil.copy(os.path.join(dir_path, name), self.add_output_file(name))
    def create_analysis_file(self): pass
    @classmethod
    def get_argument_parser(cls): return Parser()
""",
}
"""As much of NVIDIA's framework as the recipe uses, in our own words."""


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name, text in STAND_IN.items():
        path = tmp_path / "stand_in" / "nsys_recipe" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path / "stand_in"))
    metadata = json.loads((FOLDER / NAME / "metadata.json").read_text())
    yield importlib.import_module(f"{NAME}.{metadata['module_name']}")
    for name in [
        one for one in sys.modules if one.startswith(("nsys_recipe", "moe_advisor.recipe.nsys"))
    ]:
        del sys.modules[name]


class Serial:
    """A context as the framework's: map starts the work, wait gives the outcomes."""

    mode = SimpleNamespace(name="NONE")

    def map(self, function: Callable[..., Any], *rows: list[Any]) -> list[Any]:
        return list(map(function, *rows))

    def wait(self, waitable: Any) -> Any:
        return waitable


def reports(folder: Path, *names: str) -> list[str]:
    """Reports that nobody can read, each with the export that other recipes leave beside it."""
    folder.mkdir()
    for name in names:
        (folder / f"{name}.nsys-rep").write_bytes(b"NVIDIA Tegra Profiler Report 2025@3@2\x00\x01")
        two_steps().write(folder / f"{name}.sqlite")
    return [str(folder / f"{name}.nsys-rep") for name in names]


def run(recipe: Any, context: Any, *arguments: str) -> None:
    parser: argparse.ArgumentParser = recipe.MoeAdvisor.get_argument_parser()
    recipe.MoeAdvisor(parser.parse_args(arguments)).run(context)


def test_the_recipe_gives_what_analyze_gives_and_writes_nothing_beside_the_reports(
    recipe: Any, tmp_path: Path
) -> None:
    given = reports(tmp_path / "in", "a", "b")
    before = sorted(path.name for path in (tmp_path / "in").iterdir())
    run(recipe, Serial(), "--input", *given, "--output", str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == before
    exports = [str(Path(path).with_suffix(".sqlite")) for path in given]
    assert (tmp_path / "out" / "result.json").read_bytes() == json_output.encode(analyze(exports))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    assert written == {"report.html", "result.json", "summary.md", "report.ipynb"}
    json.loads((tmp_path / "out" / "report.ipynb").read_text())


def test_an_export_older_than_its_report_is_not_read(recipe: Any, tmp_path: Path) -> None:
    (report,) = reports(tmp_path / "in", "a")
    assert recipe._export_beside(Path(report)) == Path(report).with_suffix(".sqlite")
    os.utime(Path(report).with_suffix(".sqlite"), (1, 1))
    assert recipe._export_beside(Path(report)) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ModuleNotFoundError("no", name="moe_advisor"),
            "install moe-advisor in the Python of every",
        ),
        (RuntimeError("BrokenProcessPool"), "out of memory"),
    ],
)
def test_lost_workers_and_workers_without_this_program_are_one_line(
    recipe: Any, tmp_path: Path, error: Exception, words: str
) -> None:
    class Broken(Serial):
        def wait(self, waitable: Any) -> Any:
            raise error

    given = reports(tmp_path / "in", "a")
    expected = importlib.import_module("nsys_recipe.lib.exceptions").ValueError
    with pytest.raises(expected, match=words) as raised:
        run(recipe, Broken(), "--input", *given, "--output", str(tmp_path / "out"))
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_the_folder_printed_is_one_that_the_framework_finds_the_recipe_in() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "moe_advisor.recipe"], capture_output=True, text=True, check=True
    )
    folder = Path(done.stdout.strip())
    metadata = json.loads((folder / NAME / "metadata.json").read_text())
    assert {"module_name", "display_name", "description"} <= set(metadata)
    # A Python module here would hide the installed package from the framework.
    assert not list((folder / NAME).glob("*.py"))
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    assert all(name in done.stderr for name in missing)


# ------------------------------------------------------------------------------- the real framework


@pytest.fixture(scope="module")
def nsys(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Runs the real nsys with this Python as the python3 it finds."""
    found = shutil.which(os.path.expanduser(REAL_NSYS))
    if found is None:
        pytest.skip("no nsys: see the marker")
    needed = (*NEEDED, "distributed")
    if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
        pytest.skip(f"nsys recipe needs {', '.join(missing)}: install moe-advisor[recipe,dask]")
    folder = tmp_path_factory.mktemp("nsys")
    asked = folder / "asked"
    (folder / "bin").mkdir()
    program = folder / "bin" / "python3"
    program.write_text(f'#!/bin/sh\necho "$PYTHONPATH" > "{asked}"\nexit 1\n')
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [found, "recipe", "cuda_gpu_kern_sum", "--help"],
        env=environment,
        capture_output=True,
        check=False,
    )
    package = Path(asked.read_text().strip()) / "nsys_recipe"
    # Debian's package leaves out an empty folder without which no recipe starts at all: the same
    # framework, copied, with that folder.
    shadow = folder / "shadow"
    shutil.copytree(package, shadow / "nsys_recipe")
    (shadow / "nsys_recipe" / "third_party").mkdir(exist_ok=True)
    install = package.parent.parent.parent.parent
    program.write_text(
        f'#!/bin/sh\nexport PYTHONPATH="{shadow}:$PYTHONPATH:{ROOT}" NSYS_DIR="{install}"\n'
        f'exec "{sys.executable}" "$@"\n'
    )

    def started(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [found, "recipe", NAME, *arguments],
            env={**environment, "NSYS_RECIPE_PATH": str(FOLDER)},
            capture_output=True, text=True, timeout=300, check=False, cwd=folder,
        )  # fmt: skip

    return started


@pytest.mark.nsys
@pytest.mark.parametrize("mode", ["none", "concurrent", "dask-futures"])
def test_the_real_framework_runs_the_recipe_in_every_mode(
    nsys: Callable[..., Any], real_trace: Callable[[str], list[Path]], tmp_path: Path, mode: str
) -> None:
    (source,) = real_trace("nsys/shm_balanced")
    given = tmp_path / "in"
    reports(given, "run")
    shutil.copy(source, given / "run.sqlite")
    done = nsys("--input", str(given), "--mode", mode, "--output", str(tmp_path / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    result = json_output.decode((tmp_path / "out" / "result.json").read_bytes())
    ours = analyze([str(given / "run.sqlite")])
    differ = [
        name for name in ours.__struct_fields__ if getattr(ours, name) != getattr(result, name)
    ]
    assert differ == []
    assert result.walls.verdict == "communication"
    about = json.loads((tmp_path / "out" / "out.nsys-analysis").read_text())
    assert (about["RecipeName"], about["Mode"]) == (NAME, mode)
    assert sorted(path.name for path in given.iterdir()) == ["run.nsys-rep", "run.sqlite"]


@pytest.mark.nsys
def test_the_real_framework_says_what_is_wrong_with_a_report_in_one_line(
    nsys: Callable[..., Any], tmp_path: Path
) -> None:
    (report,) = reports(tmp_path / "in", "run")
    Path(report).with_suffix(".sqlite").unlink()
    done = nsys("--input", report, "--output", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert "run.nsys-rep" in done.stdout + done.stderr
    assert not (tmp_path / "out").exists()
