"""Options by environment variable and by file, and which of them goes first."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from moe_advisor.budgets.load import SETTINGS
from moe_advisor.cli import COMMANDS, cli
from moe_advisor.cli.doctor import known_variables
from moe_advisor.cli.options import every, long_name, variable

ROOT = Path(__file__).parents[2]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moe_advisor", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
    )


def test_every_option_of_every_verb_has_a_variable_of_its_own() -> None:
    names = [
        variable(path, name)
        for path, command in every(cli)
        for param in command.params
        if (name := long_name(param)) and path
    ]
    assert len(names) == len(set(names)) > 60
    for path, command in every(cli):
        for param in command.params:
            if path and (name := long_name(param)):
                assert isinstance(param.envvar, tuple)
                assert param.envvar[0] == variable(path, name)
    assert {"MOE_ADVISOR_DEBUG", "MOE_ADVISOR_SETTINGS"} <= known_variables(cli)


def test_the_budget_file_knows_the_tables_of_all_verbs() -> None:
    assert tuple(COMMANDS) == SETTINGS


CAPTURE = ("capture", "--framework", "megatron-lm")


def _steps(cwd: Path, *more: str, **environment: str) -> str:
    """--steps as `capture` understood it: the cheapest verb that shows an option's value."""
    done = run(*CAPTURE, *more, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    found = re.search(r"(\d+) whole steps", done.stdout)
    assert found is not None
    return found[1]


def test_the_command_line_goes_before_the_environment_before_the_file(tmp_path: Path) -> None:
    assert _steps(tmp_path) == "3"
    (tmp_path / "moe-advisor.toml").write_text("[capture]\nsteps = 4\n")
    assert _steps(tmp_path) == "4"
    assert _steps(tmp_path, MOE_ADVISOR_CAPTURE_STEPS="5") == "5"
    assert _steps(tmp_path, "--steps", "6", MOE_ADVISOR_CAPTURE_STEPS="5") == "6"


def test_the_nearest_file_above_counts_and_none_reads_no_file(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.moe-advisor.capture]\nsteps = 7\n")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    (tmp_path / "a" / "pyproject.toml").write_text("[project]\nname = 'moe-advisor-user'\n")
    assert _steps(below) == "7"
    assert _steps(below, MOE_ADVISOR_SETTINGS="none") == "3"
    other = tmp_path / "other.toml"
    other.write_text("[capture]\nsteps = 8\n")
    assert _steps(below, MOE_ADVISOR_SETTINGS=str(other)) == "8"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[analyse]\n", "moe-advisor.toml: unknown key 'analyse'; did you mean 'analyze'?"),
        ("[capture]\nstep = 4\n", "capture: unknown key 'step'; did you mean 'steps'?"),
        ("[capture]\nworld_size = 4\n", "unknown key 'world_size'; did you mean 'world-size'?"),
        ("capture = 4\n", "capture is not a table: write [capture]"),
        ("[capture]\nsteps = [4]\n", "capture.steps: [4] is not a text or a number"),
        ("[capture]\nsteps = 'x'\n", "settings file, capture.steps: 'x' is not a valid integer"),
        ("[capture]\nsteps = 99999\n", "settings file, capture.steps: 99999 is not in the range"),
        ("[capture\n", "moe-advisor.toml: not TOML"),
    ],
)
def test_a_slip_in_the_file_is_named_with_file_table_and_key(
    tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "moe-advisor.toml").write_text(text)
    done = run(*CAPTURE, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("moe-advisor: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert run("capture", "--help", cwd=tmp_path).returncode == 0


def test_a_broken_project_file_of_someone_else_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("[tool.ruff\n# moe-advisor\n")
    assert _steps(tmp_path) == "3"


def test_a_flag_is_true_or_false(tmp_path: Path) -> None:
    (tmp_path / "moe-advisor.toml").write_text("[demo]\nquiet = 'yes'\n")
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 2
    assert "demo.quiet: 'yes' is not true or false" in done.stderr


def _analyze_options(tmp_path: Path, **environment: str) -> dict[str, object]:
    """What `analyze` would be called with, without running it."""
    code = (
        "import json, sys\nfrom moe_advisor.cli import cli\nimport moe_advisor.cli.analyze as a\n"
        "a.analyze.callback = lambda **given: print(json.dumps(given, default=str))\n"
        "cli.main(['analyze', 'x'], standalone_mode=False)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_lists_and_paths_of_a_file_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "moe-advisor.toml").write_text(
        "[analyze]\nfail-on = ['m.step_ms > 150.0', 'm.mfu < 0.3']\nlog = 'logs/train.log'\n"
        "rules = 'my-rules'\nset = ['expert_model_parallel_size=8']\nnsys = 'nsys-2025'\n"
        "format = ['html', 'json=a.json']\n"
    )
    below = tmp_path / "below"
    below.mkdir()
    given = _analyze_options(below)
    assert given["fail_on"] == ["m.step_ms > 150.0", "m.mfu < 0.3"]
    assert given["log"] == str(tmp_path / "logs" / "train.log")
    assert given["rules"] == [str(tmp_path / "my-rules")]
    assert given["values"] == ["expert_model_parallel_size=8"]
    assert given["nsys"] == "nsys-2025"
    assert given["formats"] == [["html", None], ["json", "a.json"]]


def test_a_variable_holds_one_value_a_line(tmp_path: Path) -> None:
    given = _analyze_options(
        tmp_path,
        MOE_ADVISOR_ANALYZE_FAIL_ON="m.step_ms > 150.0\nm.mfu < 0.3",
        MOE_ADVISOR_ANALYZE_SET="a=1",
        MOE_ADVISOR_ANALYZE_QUIET="1",
        NSYS="one",
        MOE_ADVISOR_ANALYZE_NSYS="two",
    )
    assert given["fail_on"] == ["m.step_ms > 150.0", "m.mfu < 0.3"]
    assert given["values"] == ["a=1"]
    assert given["quiet"] is True
    assert given["nsys"] == "two"


def test_a_file_of_another_user_does_not_choose_the_program_to_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moe_advisor.cli import settings
    from moe_advisor.errors import ConfigError

    file = tmp_path / "moe-advisor.toml"
    file.write_text("[analyze]\nnsys = './evil'\n")
    assert isinstance(cli, click.Group)
    assert settings.defaults(file, cli)["analyze"] == {"nsys": str(tmp_path / "evil")}
    owner = file.stat().st_uid
    monkeypatch.setattr("os.getuid", lambda: owner + 1)
    if owner == 0:
        monkeypatch.setattr(settings, "ROOT_UID", -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        settings.defaults(file, cli)


def test_budgets_and_options_share_a_file(tmp_path: Path) -> None:
    run("demo", "-q", cwd=tmp_path)
    (tmp_path / "moe-advisor.toml").write_text(
        "[check]\nquiet = true\n\n[analyze]\nquiet = true\n\n"
        '[[budget]]\nname = "step"\nexpect = "m.step_ms <= 1000.0"\n'
    )
    done = run("check", "moe-advisor-demo.json", cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "b.toml").write_text("[chek]\n[[budget]]\nname = 'a'\nexpect = 'true'\n")
    done = run("check", "moe-advisor-demo.json", "--budgets", "b.toml", cwd=tmp_path)
    assert "b.toml: unknown key 'chek'; did you mean 'check'?" in done.stderr
