"""What a user meets before the main job: help, typos, completion, doctor."""

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from moe_advisor.cli import cli
from moe_advisor.cli.options import every

ROOT = Path(__file__).parents[2]
VERBS = [(" ".join(path), command) for path, command in every(cli) if path]


def run(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moe_advisor", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
    )


@pytest.mark.parametrize(("verb", "command"), VERBS, ids=[verb for verb, _ in VERBS])
def test_the_help_of_every_verb_has_examples_that_parse(verb: str, command: click.Command) -> None:
    help_text = CliRunner().invoke(cli, [*verb.split(), "--help"]).output
    examples = re.findall(r"^ +(moe-advisor .*)$", help_text, re.MULTILINE)
    assert any(line.startswith(f"moe-advisor {verb.split()[0]}") for line in examples)
    for line in examples:
        _parse(line)


def _parse(line: str) -> None:
    """Fails where an example names a verb or option that does not exist."""
    import shlex

    command, context = cli, click.Context(cli)
    words = shlex.split(line)[1:]
    words = words[: next((at for at, word in enumerate(words) if word in (">", "|")), None)]
    while words and isinstance(command, click.Group) and not words[0].startswith("-"):
        found = command.get_command(context, words.pop(0))
        assert found is not None, line
        command = found
    known = {name for param in command.params for name in param.opts} | {"-h", "--help"}
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"{line}: {word}"


@pytest.mark.parametrize(("verb", "command"), VERBS, ids=[verb for verb, _ in VERBS])
def test_every_option_is_explained(verb: str, command: click.Command) -> None:
    silent = [
        param.opts[-1]
        for param in command.params
        if isinstance(param, click.Option)
        and not (param.help or isinstance(param.type, click.Choice | click.IntRange))
    ]
    assert silent == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("anlyze", "there is no verb 'anlyze'; did you mean analyze? see moe-advisor --help"),
        ("xyzzy", "there is no verb 'xyzzy': use analyze, "),
        ("rules lst", "rules: no such command 'lst'. Did you mean 'list'? see"),
        ("analyze", "analyze: PATH... is missing; see moe-advisor analyze --help"),
        ("analyze a --formt html", "there is no option --formt; did you mean --format? see"),
        ("analyze a --jobs many", "analyze: --jobs: 'many' is not a valid integer range; see"),
        ("analyze a --format htm", "--format: unknown format 'htm'. Did you mean html?"),
        ("capture --framework torc", "capture: --framework: 'torc' is not one of"),
        ("completion tcsh", "completion: SHELL: 'tcsh' is not one of 'bash', 'zsh', 'fish'"),
    ],
)
def test_a_slip_is_one_line_that_says_what_to_write(words: str, said: str, tmp_path: Path) -> None:
    done = run(*words.split(), cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("moe-advisor: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_names_the_program(shell: str, tmp_path: Path) -> None:
    done = run("completion", shell, cwd=tmp_path)
    assert done.returncode == 0
    assert f"_MOE_ADVISOR_COMPLETE={shell}_complete" in done.stdout


@pytest.mark.parametrize(
    ("line", "word", "offered"),
    [
        ("moe-advisor an", "1", "plain,analyze"),
        ("moe-advisor analyze --fail", "2", "plain,--fail-on"),
        ("moe-advisor rules show slow", "3", "plain,slow-ep-link"),
        ("moe-advisor whatif --apply bal", "3", "plain,balanced-experts"),
        ("moe-advisor compare --metric step", "3", "plain,step_ms"),
        ("moe-advisor analyze run", "2", "file,run"),
    ],
)
def test_bash_completes_verbs_options_names_and_files(
    line: str, word: str, offered: str, tmp_path: Path
) -> None:
    done = run(
        cwd=tmp_path, _MOE_ADVISOR_COMPLETE="bash_complete", COMP_WORDS=line, COMP_CWORD=word
    )
    assert offered in done.stdout.splitlines()


def test_completion_in_fish_keeps_what_stands_behind_a_comma(tmp_path: Path) -> None:
    assert 'string split --max 1 ","' in run("completion", "fish", cwd=tmp_path).stdout


def test_doctor_finds_all_of_a_sound_installation_and_shows_nothing_private(
    tmp_path: Path,
) -> None:
    fake = tmp_path / "secret-place" / "nsys"
    fake.parent.mkdir()
    fake.write_text("#!/bin/sh\necho NVIDIA Nsight Systems version 2099.1.2.3-456\n")
    fake.chmod(0o755)
    done = run(
        "doctor",
        "--format",
        "json",
        cwd=tmp_path,
        NSYS=str(fake),
        MOE_ADVISOR_ANALYZE_LOG="secret-log",
        MOE_ADVISOR_ANALYZE_JOB="4",
        HOME="/home/secret-user",
    )
    assert done.returncode == 0, done.stderr
    checks = {one["name"]: one for one in json.loads(done.stdout)["checks"]}
    assert checks["nsys"]["text"] == "2099.1.2: reads reports of this version and older"
    assert checks["polars"]["state"] == "ok"
    assert checks["$MOE_ADVISOR_ANALYZE_LOG"]["text"] == "set"
    assert "did you mean $MOE_ADVISOR_ANALYZE_JOBS?" in checks["$MOE_ADVISOR_ANALYZE_JOB"]["text"]
    assert "secret" not in done.stdout + done.stderr


def test_doctor_fails_where_something_is_in_the_way(tmp_path: Path) -> None:
    done = run("doctor", "--nsys", "/nowhere/nsys", cwd=tmp_path)
    assert done.returncode == 1
    assert "!!  nsys" in done.stdout
    assert done.stderr == "moe-advisor: doctor: nsys: see the lines marked !!\n"
    (tmp_path / "moe-advisor.toml").write_text("[analyse]\n")
    done = run("doctor", cwd=tmp_path)
    assert done.returncode == 1
    assert "unknown key 'analyse'; did you mean 'analyze'?" in done.stdout
