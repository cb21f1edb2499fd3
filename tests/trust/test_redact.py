"""`--redact strict`: figures stay, names of the run go, and the report says so."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from moe_advisor.output import html, json_output, redact
from moe_advisor.result import Issue, Replay
from tests.hostile.run_cases import program
from tests.output.result_builder import balanced

Traces = Callable[[str], list[Path]]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("void gemm<float, (int)4>(T1 *, const T2 &)", "gemm"),
        ("at::native::(anonymous namespace)::softmax", "at::native::"),
        ("<unnamed>::arange<int, x>", "arange"),
        ("nvjet_sm90_tst_64x8_TNT", "nvjet_sm90_tst_64x8_TNT"),
        ("Memcpy DtoH (Device -> Pageable)", "Memcpy DtoH"),
        ("<<<", "kernel"),
    ],
)
def test_a_kernel_loses_template_values_and_parameters(name: str, shown: str) -> None:
    assert redact.kernel(name) == shown


def test_names_of_the_run_are_in_no_output_and_figures_stay(
    real_trace: Traces, tmp_path: Path
) -> None:
    (trace,) = real_trace("nsys/pp_mix")
    kinds = ("html", "json", "markdown", "junit", "text")
    formats = [f"--format={kind}" for kind in kinds]
    for folder, more in (("plain", []), ("strict", ["--redact", "strict"])):
        ended = program(["analyze", str(trace), "-o", str(tmp_path / folder), *formats, *more])
        assert ended.code == 0, ended.stderr
    plain = json.loads((tmp_path / "plain" / "result.json").read_bytes())
    strict = json.loads((tmp_path / "strict" / "result.json").read_bytes())
    assert strict["metrics"].keys() == plain["metrics"].keys()
    for name, metric in plain["metrics"].items():
        assert strict["metrics"][name].get("value") == metric.get("value")
    for key in ("walls", "roles", "step_parts", "compute_absent"):
        assert strict[key] == plain[key]
    assert [r["outcome"] for r in strict["rules"]] == [r["outcome"] for r in plain["rules"]]
    hidden = {one["name"] for one in plain["inputs"]} | set(plain["steps"]["names"])
    hidden |= {one["group"] for one in plain["collectives"]}
    hidden |= {row[2] for row in plain["timeline"]["host"]}
    hidden |= {n for n in plain["timeline"]["names"] if "<" in n or "(" in n}
    hidden = {name for name in hidden if re.search("[^a-z ]", name) and len(name) > 4}
    assert len(hidden) > 10
    for path in (tmp_path / "strict").iterdir():
        text = path.read_text()
        alone = [n for n in hidden if re.search(rf"(?<!\w){re.escape(n)}(?!\w)", text)]
        assert alone == []
        if path.name == "report.html":
            method = text[text.index('id="method"') :]
            assert "Redaction, strict: names of files" in method


def test_a_result_is_redacted_once_and_rendering_it_again_shows_it() -> None:
    once = redact.strict(balanced())
    assert redact.strict(once) is once
    again = json_output.decode(json_output.encode(once))
    assert again == once
    assert "Redaction, strict" in html.render(again)
    assert "Redaction" not in html.render(balanced())


def test_tables_of_activities_are_refused_with_redaction(tmp_path: Path) -> None:
    from tests.nsys_builder import two_steps

    trace = two_steps().write(tmp_path / "a.sqlite")
    target = f"--format=csv={tmp_path / 't.csv'}"
    ended = program(["analyze", str(trace), target, "--redact", "strict"])
    assert ended.code == 2
    assert "moe-advisor scrub" in ended.stderr
    assert not (tmp_path / "t.csv").exists()


def test_whatif_hides_the_names_of_steps_too(real_trace: Traces) -> None:
    (trace,) = real_trace("nsys/pp_mix")
    for more in ([], ["--format", "json"], ["--apply", "link=2"]):
        plain = program(["whatif", str(trace), *more])
        strict = program(["whatif", str(trace), "--redact", "strict", *more])
        assert plain.code == strict.code == 0, strict.stderr
        assert "iteration" in plain.stdout
        assert "iteration" not in strict.stdout
        assert "step 2" in strict.stdout


def test_every_verb_that_shows_a_run_hides_its_names(real_trace: Traces, tmp_path: Path) -> None:
    (packed,) = real_trace("nsys/pp_mix")
    (tmp_path / "zebra").mkdir()
    trace = Path(shutil.copy(packed, tmp_path / "zebra" / "zebra_run.sqlite"))
    (tmp_path / "moe-advisor.toml").write_text('[[budget]]\nname = "s"\nexpect = "m.step_ms > 0"\n')
    other = str(shutil.copy(trace, tmp_path / "zebra_other.sqlite"))
    budgets = ["--budgets", str(tmp_path / "moe-advisor.toml")]
    earlier, database = str(tmp_path / "okapi.json"), str(tmp_path / "runs.db")
    assert program(["analyze", str(trace), f"--format=json={earlier}"]).code == 0
    assert program(["history", "add", database, earlier, "--branch", "main"]).code == 0
    for number, arguments in enumerate(
        (
            ["analyze", str(trace)],
            ["render", earlier],
            ["check", str(trace), *budgets],
            ["check", earlier, *budgets],
            ["compare", earlier, str(trace)],
            ["compare", other, "--baseline", f"{database}:main"],
        )
    ):
        folder = tmp_path / f"out{number}"
        ended = program([*arguments, "--redact", "strict", "-o", str(folder)])
        assert ended.code == 0, ended.stderr
        shown = ended.stdout.replace(str(folder), "")
        for text in [shown, *(path.read_text() for path in folder.iterdir())]:
            assert re.findall(r"zebra\w*|okapi\S*|iteration[ _]?\d+", text) == []


def test_redaction_does_not_make_a_run_its_own_baseline(tmp_path: Path) -> None:
    earlier, database = tmp_path / "run.json", str(tmp_path / "runs.db")
    earlier.write_bytes(json_output.encode(balanced()))
    assert program(["history", "add", database, str(earlier)]).code == 0
    for more in ([], ["--redact", "strict"]):
        ended = program(["compare", str(earlier), "--baseline", f"{database}:main", *more])
        assert ended.code == 2
        assert "only this run itself is there" in ended.stderr


def test_an_input_that_was_left_out_is_not_named() -> None:
    issue = Issue(
        id="input-skipped", severity="warning", count=1, message="alpine-7b.json: holds no step"
    )
    result = msgspec.structs.replace(
        balanced(), capture=msgspec.structs.replace(balanced().capture, issues=[issue])
    )
    said = redact.strict(result).capture.issues[0].message
    assert said == "left-out input 1: holds no step"


def test_a_step_called_a_plain_word_is_hidden_where_the_replay_names_it() -> None:
    run = balanced()
    named = msgspec.structs.replace(run.steps, names=["sprint"])
    replay = Replay(
        step="sprint", ranks=2, step_ms=9.0, error_share=0.0, unexplained_share=0.0,
        modelled_share=1.0,
    )  # fmt: skip
    strict = redact.strict(msgspec.structs.replace(run, steps=named, replay=replay))
    assert strict.replay is not None
    assert strict.replay.step == strict.steps.names[0] == "step 1"
