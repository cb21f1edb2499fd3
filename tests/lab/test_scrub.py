"""lab/scrub.py is the product's scrub (tests/trust/test_scrub.py), started as a file."""

import subprocess
import sys
from pathlib import Path

from tests.nsys_builder import two_steps

SCRIPT = Path(__file__).parents[2] / "lab" / "scrub.py"


def test_the_script_writes_a_scrubbed_copy_and_says_what_went(tmp_path: Path) -> None:
    export = two_steps()
    export.add("META_DATA_EXPORT", name="EXPORT_HOST", value="node17.cluster.example")
    source, target = export.write(tmp_path / "in.sqlite"), tmp_path / "out.sqlite"
    done = subprocess.run(
        [sys.executable, SCRIPT, source, target], capture_output=True, text=True, check=True
    )
    assert "facts about capture" in done.stdout
    assert b"node17" not in target.read_bytes()
