"""lab/run.sh says why it skips, and puts predicted beside measured where it runs."""

import gzip
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "lab"
DEMO = Path(__file__).parents[2] / "moe_advisor" / "demo"


def run(*arguments: str, tools: Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    """run.sh with only the system's programs, this Python's and those in `tools` on PATH."""
    program(tools, "moe-advisor", f'exec "{sys.executable}" -m moe_advisor "$@"')
    path = f"{tools}:{Path(sys.executable).parent}:/usr/bin:/bin"
    return subprocess.run(
        ["bash", str(LAB / "run.sh"), *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, "PATH": path, "PYTHONPATH": str(LAB.parent)},
        check=False,
    )


def program(folder: Path, name: str, body: str) -> None:
    """An executable shell script."""
    file = folder / name
    file.write_text(f"#!/bin/bash\n{body}\n")
    file.chmod(0o755)


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    return folder


def two_gpus(tools: Path) -> None:
    program(tools, "nvidia-smi", "echo 'GPU 0: x'; echo 'GPU 1: x'")


@pytest.mark.parametrize(
    ("gpus", "reason"), [(None, "no NVIDIA driver on this host"), (1, "needs two GPUs, found 1")]
)
def test_without_two_gpus_it_skips_with_the_reason(
    gpus: int | None, reason: str, tools: Path, tmp_path: Path
) -> None:
    if gpus:
        program(tools, "nvidia-smi", "echo 'GPU 0: x'")
    done = run("balanced", tools=tools, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (77, f"skipped: {reason}\n")
    assert not (tmp_path / "lab-out").exists()


@pytest.mark.parametrize(
    ("variant", "needs"),
    [("mcore_flash", "megatron-core"), ("deepep", "DeepEP"), ("ncclep", "nccl-extensions")],
)
def test_a_missing_package_is_a_reason_to_skip(
    variant: str, needs: str, tools: Path, tmp_path: Path
) -> None:
    two_gpus(tools)
    program(tools, "torchrun", "exit 1")
    done = run(variant, tools=tools, cwd=tmp_path)
    assert done.returncode == 77
    assert needs in done.stderr


def test_an_unknown_variant_is_refused_with_those_there_are(tools: Path, tmp_path: Path) -> None:
    done = run("mcore_nonsense", tools=tools, cwd=tmp_path)
    assert done.returncode == 2
    assert " te_fp8 " in done.stderr


def test_the_predicted_gain_stands_beside_the_measured_one(tools: Path, tmp_path: Path) -> None:
    two_gpus(tools)
    for rank in (0, 1):
        packed = DEMO / f"shm_balanced.rank{rank}.json.gz"
        (tmp_path / f"trace{rank}").write_bytes(gzip.decompress(packed.read_bytes()))
    # Writes the capture in torch mode; both ranks' RESULT lines run together, as seen on GPUs.
    program(
        tools,
        "torchrun",
        f"""while [ $# -gt 0 ]; do case $1 in --out) out=$2;; --mode) mode=$2;; --variants) v=$2;;
        esac; shift; done
        if [ $mode = torch ]; then ms=300; for r in 0 1; do
          cp {tmp_path}/trace$r "$out/shm_$v.rank$r.json"; done; else ms=270; fi
        echo 'RESULT {{"rank": 1, "step_ms_median": 999}}RESULT {{"rank": 0,'\
             '"step_ms_median": '$ms'}}'""",
    )
    done = run("shm_balanced", "out", tools=tools, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "== shm_balanced -> shm_overlap (ep-overlap)" in done.stdout
    assert re.search(r"^predicted: ep-overlap +[\d.]+ ms", done.stdout, re.MULTILINE)
    assert "measured: 300.0 -> 270.0 ms, +30.0 ms (+10.0% saved)" in done.stdout


def test_every_pair_names_variants_that_exist() -> None:
    scripts = {name: (LAB / name).read_text() for name in ("ep_moe.py", "mcore_train.py")}
    for line in (LAB / "pairs.tsv").read_text().splitlines():
        for variant in line.split("\t")[:2]:
            script = "mcore_train.py" if variant.startswith("mcore_") else "ep_moe.py"
            assert f'    "{variant.removeprefix("mcore_")}": ' in scripts[script], variant
