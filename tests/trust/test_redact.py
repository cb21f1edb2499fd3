"""`--redact strict`: figures stay, names of the run go, and the report says so."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_advisor.output import html, json_output, redact
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
