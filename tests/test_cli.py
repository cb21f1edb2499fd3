"""The program as a user meets it: exit codes, messages, files written and files left alone."""

import gzip
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from moe_advisor.result import json_schema

Traces = Callable[[str], list[Path]]
ROOT = Path(__file__).parent.parent


def run(*arguments: object, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "moe_advisor", *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **options},
    )


def test_the_demo_writes_a_report_and_a_result_that_keeps_the_schema(tmp_path: Path) -> None:
    done = run("demo", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "moe-advisor-demo.html",
        "moe-advisor-demo.json",
    ]
    result = json.loads((tmp_path / "moe-advisor-demo.json").read_text())
    jsonschema.validate(result, json_schema())
    assert result["walls"]["verdict"] == "communication"
    lines = done.stdout.splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert run("demo", "-q", cwd=tmp_path).returncode == 0  # replaces its own files


def test_the_published_schema_is_the_one_of_the_code() -> None:
    published = json.loads((ROOT / "moe_advisor" / "result.schema.json").read_text())
    assert published == json.loads(json.dumps(json_schema()))


def test_outputs_go_to_the_current_folder_and_are_not_replaced_unasked(
    real_trace: Traces, tmp_path: Path
) -> None:
    (trace,) = real_trace("nsys/base")
    assert run("analyze", trace, "-q", cwd=tmp_path).returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base.moe.html", "base.moe.json"]
    before = (tmp_path / "base.moe.json").read_bytes()
    again = run("analyze", trace, cwd=tmp_path)
    assert again.returncode == 2
    assert (
        again.stderr == "moe-advisor: base.moe.html: exists already: give --force to replace it\n"
    )
    assert run("analyze", trace, "-q", "--force", cwd=tmp_path).returncode == 0
    assert (tmp_path / "base.moe.json").read_bytes() == before


def test_render_makes_the_same_bytes_again(tmp_path: Path) -> None:
    run("demo", "-q", cwd=tmp_path)
    for kind, name in (("html", "moe-advisor-demo.html"), ("json", "moe-advisor-demo.json")):
        again = run("render", "moe-advisor-demo.json", "--format", f"{kind}=again", cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        assert (tmp_path / "again").read_bytes() == (tmp_path / name).read_bytes()
        (tmp_path / "again").unlink()


def test_inputs_and_their_folder_are_left_as_they_were(real_trace: Traces, tmp_path: Path) -> None:
    files = [*real_trace("nsys/small"), *real_trace("torch/gcsync")]

    def state() -> list[tuple[str, int, str]]:
        folders = {file.parent for file in files}
        return sorted(
            (str(path), path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
            for folder in folders
            for path in folder.iterdir()
        )

    before = state()
    for number, file in enumerate(files):
        assert (
            run("analyze", file, "-q", "-o", tmp_path / str(number), cwd=tmp_path).returncode == 0
        )
    assert state() == before


def test_one_format_can_go_to_standard_output(real_trace: Traces, tmp_path: Path) -> None:
    (trace,) = real_trace("torch/gcsync")
    done = run("analyze", trace, "-o", "-", "--format", "json", cwd=tmp_path)
    assert json.loads(done.stdout)["schema"] == "moe-advisor/result"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("expression", "code", "message"),
    [
        ("m.step_ms > 100000.0", 0, ""),
        ("m.step_ms > 1.0", 1, "is true"),
        ('walls.verdict == "compute_host"', 1, "is true"),
        ('findings.exists(f, f == "no-such-rule")', 2, "there is no rule 'no-such-rule'"),
        ("m.mfu < 0.4", 1, "could not be measured"),
        ("m.stp_ms > 1.0", 2, "did you mean m.step_ms?"),
        ("m.step_ms >", 2, "--fail-on"),
    ],
)
def test_gates_fail_closed(
    real_trace: Traces, tmp_path: Path, expression: str, code: int, message: str
) -> None:
    (trace,) = real_trace("torch/gcsync")
    done = run("analyze", trace, "-q", "--fail-on", expression, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert done.stderr.count("\n") == (1 if code else 0)


BROKEN = {
    "missing.sqlite": None,
    "empty.json": b"",
    "text.json": b"hello",
    "folder-of-nothing": "dir",
    "half.sqlite": b"SQLite format 3\x00" + b"\x10\x00" + b"\x00" * 40,
    "other.json": b'{"a": 1}',
    "cut.json.gz": gzip.compress(b'{"traceEvents": [')[:20],
    "newer.json": b'{"schema": "moe-advisor/result", "schema_version": "9.0"}',
}


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_bad_input_is_one_clear_line_and_nothing_written(tmp_path: Path, name: str) -> None:
    path, content = tmp_path / name, BROKEN[name]
    if content == "dir":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)  # type: ignore[arg-type]
    before = sorted(tmp_path.rglob("*"))
    done = run("analyze", path, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("moe-advisor: ")
    assert done.stderr.count("\n") == 1
    assert name.split(".")[0] in done.stderr
    assert done.stdout == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_cut_trace_gives_a_result_that_says_so(real_trace: Traces, tmp_path: Path) -> None:
    whole = real_trace("torch/gcsync")[0].read_bytes()
    (tmp_path / "cut.json").write_bytes(whole[: len(whole) * 2 // 3])
    done = run("analyze", "cut.json", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    capture = json.loads((tmp_path / "cut.moe.json").read_text())["capture"]
    assert capture["complete"] is False
    assert "truncated-input" in [issue["id"] for issue in capture["issues"]]


def test_a_trace_without_gpu_work_is_a_result_with_nothing_measured(tmp_path: Path) -> None:
    trace = {
        "traceEvents": [
            {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 1, "dur": 5}
        ]
    }
    (tmp_path / "cpu.json").write_text(json.dumps(trace))
    done = run("analyze", "cpu.json", "-q", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "cpu.moe.json").read_text())
    jsonschema.validate(result, json_schema())
    assert {metric["status"] for metric in result["metrics"].values()} == {"not_measured"}
    assert result["walls"]["verdict"] == "inconclusive"
    assert result["capture"]["complete"] is False


def test_mixed_profilers_and_ranks_given_twice_are_named(
    real_trace: Traces, tmp_path: Path
) -> None:
    torch, nsys = real_trace("torch/gcsync")[0], real_trace("nsys/base")[0]
    mixed = run("analyze", torch, nsys, cwd=tmp_path)
    assert mixed.returncode == 2
    assert "give one profiler's at a time" in mixed.stderr
    copy = tmp_path / "copy.json"
    copy.write_bytes(torch.read_bytes())
    done = run("analyze", torch, copy, "-q", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    issues = json.loads((tmp_path / "out" / "result.json").read_text())["capture"]["issues"]
    assert "duplicate-rank" in [issue["id"] for issue in issues]


def test_help_does_not_load_what_it_does_not_need(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom moe_advisor.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as done:\n    assert not done.code\n"
        "heavy = {'polars', 'numpy', 'cel', 'yaml', 'jinja2', 'rich', 'msgspec'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "analyze" in done.stdout


def test_a_mistyped_verb_is_answered_with_the_near_one(tmp_path: Path) -> None:
    done = run("anlyze", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "moe-advisor: there is no verb 'anlyze'; did you mean analyze? see moe-advisor --help\n"
    )


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("m.stp_ms > 1.0", "did you mean m.step_ms?"),
        ("m.step_ms >", "not a CEL expression"),
        ('walls.verdit == "memory"', "did you mean walls.verdict?"),
        ("capture.whole", "use complete"),
        ("step_ms > 1.0", "unknown name 'step_ms'"),
        ("m.step_ms > k.limit", "write the number"),
    ],
)
def test_a_wrong_gate_costs_no_work(
    real_trace: Traces, tmp_path: Path, expression: str, message: str
) -> None:
    (trace,) = real_trace("torch/gcsync")
    done = run("analyze", trace, "--fail-on", expression, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_tables_and_the_annotated_trace_are_made_from_a_trace_only(
    real_trace: Traces, tmp_path: Path
) -> None:
    (trace,) = real_trace("torch/gcsync")
    kinds = ("perfetto", "parquet", "csv", "json")
    done = run("analyze", trace, "-q", *(f"--format={kind}" for kind in kinds), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = sorted(path.name.partition(".moe.")[2] for path in tmp_path.iterdir())
    assert names == ["csv", "json", "parquet", "perfetto.json"]
    (made,) = tmp_path.glob("*.moe.json")
    for verb in ("render", "analyze"):
        refused = run(verb, made, "--format", "parquet", "-o", "other", cwd=tmp_path)
        assert refused.returncode == 2
        assert "give the trace for --format parquet" in refused.stderr
    assert len(list(tmp_path.iterdir())) == 4
