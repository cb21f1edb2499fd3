"""The shell of every integration, run here as its host would run it."""

import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import yaml

from moe_advisor.history import store
from moe_advisor.output import json_output
from moe_advisor.result import MetricValue, RankValue, Result
from tests.output.result_builder import balanced

ROOT = Path(__file__).parent.parent.parent


def run_of(*steps: float) -> Result:
    base = balanced()
    value = sum(steps) / len(steps)
    ranks = [RankValue(rank=0, value=value, steps=list(steps))]
    metric = MetricValue(status="measured", value=value, unit="ms/step", per_rank=ranks)
    return msgspec.structs.replace(base, metrics=base.metrics | {"step_ms": metric})


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder with a run, a faster one, budgets, and moe-advisor on PATH."""
    (tmp_path / "run.json").write_bytes(json_output.encode(run_of(100, 101, 99)))
    (tmp_path / "fast.json").write_bytes(json_output.encode(run_of(80, 81, 79)))
    (tmp_path / "moe-advisor.toml").write_text(
        "[[budget]]\nname = 'step'\nexpect = 'm.step_ms < 200.0'\n"
    )
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "moe-advisor"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moe_advisor "$@"\n')
    program.chmod(0o755)
    return tmp_path


def shell(job: Path, script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": f"{job / 'bin'}:/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(job),
        **variables,
    }
    return subprocess.run(
        ["bash", "-eo", "pipefail", "-c", script],
        cwd=job, env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("variables", "code"),
    [
        ({"MOE_PATH": "run.json"}, 0),
        ({"MOE_PATH": "run.json", "MOE_BASE": "run.json"}, 0),
        ({"MOE_PATH": "run.json", "MOE_BASE": "fast.json"}, 1),
        ({"MOE_PATH": "run.json", "MOE_BASELINE": "h.db:main~5"}, 1),
        ({"MOE_PATH": "run.json", "MOE_BUDGETS": "none.toml"}, 2),
        ({"MOE_PATH": "none.json"}, 2),
    ],
)
def test_the_github_action_checks_and_compares(
    job: Path, variables: dict[str, str], code: int
) -> None:
    for number in range(5):
        store.add(job / "h.db", run_of(80 + number / 10, 80, 80), commit=f"c{number}")
    action = yaml.safe_load((ROOT / "action.yml").read_text())
    steps = {step["name"]: step for step in action["runs"]["steps"]}
    used = set(re.findall(r"inputs\.([a-z]+)", (ROOT / "action.yml").read_text()))
    assert used == set(action["inputs"])
    wanted = dict.fromkeys(steps["Check"]["env"], "")
    wanted |= {"MOE_OUTPUT": "out", **variables}
    summary = job / "summary.md"
    done = shell(
        job,
        steps["Check"]["run"],
        GITHUB_ACTION_PATH=str(ROOT),
        GITHUB_STEP_SUMMARY=str(summary),
        **wanted,
    )
    assert done.returncode == code, done.stderr
    if code < 2:
        assert (job / "out" / "junit.xml").is_file()
        assert (job / "out" / "report.html").is_file()
        assert summary.read_text().startswith("## Budgets: 0 of 1 budget missed")
        assert (job / "out" / "compare.html").is_file() == (len(variables) > 1)


def test_the_gitlab_template_writes_the_reports_that_it_declares(job: Path) -> None:
    text = (ROOT / "integrations" / "gitlab" / "moe-advisor.gitlab-ci.yml").read_text()
    template = yaml.safe_load(text)[".moe-advisor"]
    variables = template["variables"] | {"MOE_PATH": "run.json", "MOE_BASE": "run.json"}
    done = shell(job, "\n".join(template["script"]), **variables)
    assert done.returncode == 0, done.stderr
    for path in template["artifacts"]["reports"].values():
        assert (job / path.replace("$MOE_OUTPUT", variables["MOE_OUTPUT"])).is_file()
    variables["MOE_BASE"] = "fast.json"
    assert shell(job, "\n".join(template["script"]), **variables).returncode == 1
    assert (job / variables["MOE_OUTPUT"] / "compare.html").is_file()
    for number in range(5):
        store.add(job / "h.db", run_of(80 + number / 10, 80, 80), commit=f"c{number}")
    variables |= {"MOE_BASE": "", "MOE_BASELINE": "h.db:main~5"}
    done = shell(job, "\n".join(template["script"]), **variables)
    assert (done.returncode, "step_ms is worse" in done.stderr) == (1, True), done.stderr
    variables["MOE_BUDGETS"] = "none.toml"
    assert shell(job, "\n".join(template["script"]), **variables).returncode == 2


def test_the_jenkins_stage_runs_and_leaves_its_reports(job: Path) -> None:
    text = (ROOT / "integrations" / "jenkins" / "Jenkinsfile").read_text()
    (script,) = re.findall(r"sh '''(.*?)'''", text, re.DOTALL)
    done = shell(job, script, MOE_PATH="run.json")
    assert done.returncode == 0, done.stderr
    (report,) = re.findall(r"junit '(.*?)'", text)
    assert (job / report).is_file()
    for number in range(5):
        store.add(job / "h.db", run_of(80 + number / 10, 80, 80), commit=f"c{number}")
    script = script.replace("\\\n", "")  # as Groovy does
    done = shell(job, script, MOE_PATH="run.json", MOE_BASELINE="h.db:main~5")
    assert (done.returncode, "step_ms is worse" in done.stderr) == (1, True), done.stderr


def test_the_slurm_epilogue_reports_once_and_never_fails_the_job(job: Path) -> None:
    script = f'bash "{ROOT}/integrations/slurm/epilogue.sh" "$CAPTURES" "$HISTORY"'
    common = {"HISTORY": str(job / "h.db"), "SLURM_JOB_ID": "42", "MOE_COMMIT": "abc"}
    done = shell(job, script, CAPTURES=str(job / "none"), **common)
    assert (done.returncode, "no report" in done.stderr) == (0, True)
    captures = job / "captures"
    captures.mkdir()
    demo = next((ROOT / "moe_advisor" / "demo").glob("*.rank0.json.gz"))
    (captures / demo.name).write_bytes(demo.read_bytes())
    done = shell(job, script, CAPTURES=str(captures), SLURM_PROCID="1", **common)
    assert not (captures / "moe-advisor-42").exists()
    done = shell(job, script, CAPTURES=str(captures), **common)
    assert done.returncode == 0, done.stderr
    assert (captures / "moe-advisor-42" / "report.html").is_file()
    (row,) = store.read(job / "h.db")
    assert (row.commit, row.labels["job"]) == ("abc", "42")
