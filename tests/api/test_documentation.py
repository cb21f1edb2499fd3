"""docs/python-api.md and the notebook do what they say."""

import re
from pathlib import Path
from typing import Any

import pytest

import moe_advisor as ma
from moe_advisor.measure.activity_table import ACTIVITY_TABLE

DOCS = Path(__file__).parent.parent.parent / "docs"


def test_the_examples_of_the_page_run(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "python-api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "python-api.md", "exec"), names)
    printed = capsys.readouterr().out
    assert printed.startswith("communication - More than half of every step")
    assert "183.4 ms/step, measured" in printed
    assert "memory_peak_gib not measured: " in printed


def test_the_page_names_every_column_and_attribute() -> None:
    page = (DOCS / "python-api.md").read_text(encoding="utf-8")
    for column in ACTIVITY_TABLE:
        assert f"`{column}`" in page, column
    public = [name for name in vars(ma.Analysis) if not name.startswith("_")]
    for name in public:
        assert re.search(rf"`{name}[`(]", page), name


def test_the_notebook_runs_from_top_to_bottom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel")
    notebook = nbformat.read(DOCS / "notebooks" / "demo.ipynb", as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "store it without outputs"
    # Nothing of the user's: no kernel of theirs, and no folder that may not be written.
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        startup_timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": tmp_path}},
    )
    client.execute()
    shown = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data" in output and "text/html" in output["data"]
    ]
    assert "More than half of every step" in shown[0]["data"]["text/html"]
