"""`moe-advisor scrub`: private values go, an analysis stays the same."""

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from moe_advisor import analysis
from moe_advisor.errors import InputError, OutputError
from moe_advisor.output import json_output
from moe_advisor.scrub import scrub
from tests import kineto_builder
from tests.hostile.cases import steps
from tests.hostile.run_cases import program, state
from tests.nsys_builder import GENERATIONS, message, two_steps
from tests.privacy.test_privacy import with_canaries
from tests.trust.planted import CANARY, plant_nsys

Traces = Callable[[str], list[Path]]
HOST, USER, HOME = "node17.cluster.example", "avery-jones", "/home/avery-jones/secret-project"


def judged(paths: list[Path]) -> dict[str, Any]:
    """All that an analysis says but the names of files, with the timeline's names in place."""
    result = json.loads(json_output.encode(analysis.analyze([str(path) for path in paths])))
    result["inputs"] = [{**one, "name": ""} for one in result["inputs"]]
    timeline = result["timeline"]
    if timeline:
        names = timeline.pop("names")
        timeline["slices"]["name"] = [names[number] for number in timeline["slices"]["name"]]
    return result


@pytest.mark.parametrize(
    "name", ["nsys/deepep", "nsys/small_graph_whole", "nsys/pp_mix", "torch/skew"]
)
def test_a_real_trace_gives_the_same_metrics_roles_verdict_and_findings(
    name: str, real_trace: Traces, tmp_path: Path
) -> None:
    sources = real_trace(name)[:1]
    targets = [tmp_path / source.name for source in sources]
    for source, target in zip(sources, targets, strict=True):
        scrub(source, target)
        data = target.read_bytes()
        assert b"canary" not in data.lower()
    assert judged(targets) == judged(sources)


@pytest.mark.parametrize("schema", GENERATIONS)
def test_no_canary_is_in_the_bytes_of_any_generation(schema: str, tmp_path: Path) -> None:
    source = with_canaries(schema).write(tmp_path / "in.sqlite")
    with closing(sqlite3.connect(source)) as database:
        database.execute("pragma secure_delete=off")  # some builds of SQLite wipe on their own
        database.execute("create table Gone (x)")
        database.execute("insert into Gone values (?)", (f"{CANARY} deleted" * 500,))
        database.commit()
        database.execute("drop table Gone")
        database.commit()
    assert b"deleted" in source.read_bytes()
    target = tmp_path / "out.sqlite"
    scrub(source, target)
    assert CANARY.encode() not in target.read_bytes()
    before, after = judged([source]), judged([target])
    # The canary stands where the version does too, and hides the true one before it.
    assert {**before, "inputs": []} == {**after, "inputs": []}


def test_every_text_of_a_real_export_goes(real_trace: Traces, tmp_path: Path) -> None:
    source, target = tmp_path / "in.sqlite", tmp_path / "out.sqlite"
    plant_nsys(real_trace("nsys/base")[0], source)
    scrub(source, target)
    assert CANARY.lower().encode() not in target.read_bytes().lower()
    with closing(sqlite3.connect(target)) as database:
        kinds = database.execute("select distinct type from sqlite_master").fetchall()
    assert kinds == [("table",)]


def test_paths_addresses_and_private_values_go_from_names(tmp_path: Path) -> None:
    export = two_steps()
    export.add("META_DATA_EXPORT", name="EXPORT_HOST", value=HOST)
    export.add("META_DATA_CAPTURE", name="PROCESS_0:USER_NAME", value=USER)
    export.add("META_DATA_CAPTURE", name="PROCESS_0:WORKING_DIR", value=HOME)
    secret = 'API_TOKEN="hf_abcdefgh12345"'
    export.add("META_DATA_CAPTURE", name="PROCESS_0:ENVIRONMENT_VARIABLE", value=secret)
    for number, text in enumerate(
        (f"load {HOME}/data.bin", f"on {HOST} now", "MY_TOKEN=abc123", "see https://x.example/a?b",
         "mail a.b@example.com", "10.1.2.3 up", f"by {USER.upper()}", "hf_abcdefgh12345", "node17",
         r"C:\Users\me\x.py")
    ):  # fmt: skip
        export.range(1_100 + number, 1_200 + number, text)
    target = tmp_path / "out.sqlite"
    report = scrub(export.write(tmp_path / "in.sqlite"), target)
    data = target.read_bytes().lower()
    for private in (HOST, USER, "abc123", "x.example", "a.b@", "10.1.2.3", "hf_abc", "users"):
        assert private.encode() not in data
    assert any("names with a path" in one.what for one in report.removed)


def test_names_of_kernels_and_nccl_payloads_stay(tmp_path: Path) -> None:
    export = two_steps()
    export.nccl(1_200, 1_300, "ncclAllReduce", message(5, 9, 64))
    export.range(1_400, 1_500, "other", domain=7, blob=b"user payload" * 5)
    target = tmp_path / "out.sqlite"
    scrub(export.write(tmp_path / "in.sqlite"), target)
    with closing(sqlite3.connect(target)) as database:
        strings = {row[0] for row in database.execute("select value from StringIds")}
        blobs = database.execute(
            "select binaryData from NVTX_EVENTS where binaryData is not null"
        ).fetchall()
    assert {"gemm", "cuLaunchKernelEx", "ncclAllReduce"} <= strings
    assert blobs == [(message(5, 9, 64),)]


def test_a_torch_trace_keeps_events_times_and_shapes(tmp_path: Path) -> None:
    content = kineto_builder.trace(*steps())
    source = kineto_builder.write(tmp_path, content)
    target = tmp_path / "out.json"
    report = scrub(source, target)
    before, after = json.loads(content), json.loads(target.read_bytes())
    assert after["traceEvents"] == before["traceEvents"]
    assert after["distributedInfo"]["pg_config"] == before["distributedInfo"]["pg_config"]
    assert report.kept == len(before["traceEvents"])


def test_the_same_trace_gives_the_same_bytes(tmp_path: Path) -> None:
    source = kineto_builder.write(tmp_path, kineto_builder.trace(*steps()))
    for name in ("1.json.gz", "2.json.gz"):
        scrub(source, tmp_path / name)
    assert (tmp_path / "1.json.gz").read_bytes() == (tmp_path / "2.json.gz").read_bytes()


def test_a_cut_trace_stays_cut(tmp_path: Path) -> None:
    source = kineto_builder.write(tmp_path, kineto_builder.trace(*steps())[:-200])
    target = tmp_path / "out.json"
    scrub(source, target)
    issues = {issue["id"] for issue in judged([source])["capture"]["issues"]}
    assert issues <= {issue["id"] for issue in judged([target])["capture"]["issues"]}
    assert any("trunc" in issue for issue in issues)


def test_what_is_no_trace_that_can_be_scrubbed_is_refused_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    two_steps().write(folder / "cut.sqlite")
    whole = (folder / "cut.sqlite").read_bytes()
    (folder / "cut.sqlite").write_bytes(whole[:-4096])
    (folder / "text.json").write_text("[]")
    (folder / "run.nsys-rep").write_bytes(b"NVIDIA Tegra Profiler Report 2025@3@2" + bytes(100))
    with closing(sqlite3.connect(folder / "other.sqlite")) as database:
        database.execute("create table x (y)")
        database.commit()
    before = state(folder)
    for path in sorted(folder.iterdir()):
        with pytest.raises(InputError, match=path.name):
            scrub(path, out / path.name)
    assert not out.exists() or list(out.iterdir()) == []
    assert state(folder) == before


def test_an_output_that_exists_is_replaced_only_when_told(tmp_path: Path) -> None:
    source, target = two_steps().write(tmp_path / "in.sqlite"), tmp_path / "out.sqlite"
    target.write_text("mine")
    with pytest.raises(OutputError, match="exists already"):
        scrub(source, target)
    assert target.read_text() == "mine"
    scrub(source, target, force=True)
    assert target.read_bytes().startswith(b"SQLite")


def test_the_command_lists_what_was_removed_without_repeating_it(tmp_path: Path) -> None:
    source = with_canaries("3.20.3").write(tmp_path / "in.sqlite")
    ended = program(["scrub", str(source), str(tmp_path / "a.sqlite")])
    assert ended.code == 0
    assert "ThreadNames" in ended.stdout
    as_json = program(["scrub", str(source), str(tmp_path / "b.sqlite"), "--json"])
    document = json.loads(as_json.stdout)
    assert document["format"] == "nsys-sqlite"
    assert {"rows of ThreadNames", "rows of PROCESSES"} <= {r["what"] for r in document["removed"]}
    assert CANARY not in ended.stdout + as_json.stdout
    assert (tmp_path / "a.sqlite").read_bytes() == (tmp_path / "b.sqlite").read_bytes()
