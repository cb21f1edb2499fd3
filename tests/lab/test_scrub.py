"""lab/scrub.py takes private values out of captures and leaves the measurements alone."""

import gzip
import importlib.util
import json
import sqlite3
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).parents[2] / "lab" / "scrub.py"
HOST, USER, HOME = "node17.cluster.example", "avery", "/home/avery/secret-project"


@pytest.fixture(scope="module")
def scrub() -> ModuleType:
    spec = importlib.util.spec_from_file_location("lab_scrub", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kineto(path: Path, **extra: object) -> Path:
    events = [
        {"ph": "X", "cat": "kernel", "name": "void f<int, 4>(float*)", "ts": 1.5, "dur": 2.25},
        {"ph": "X", "cat": "python_function", "name": f"{HOME}/train.py(7): step", "ts": 1},
        {"ph": "M", "name": "process_labels", "args": {"labels": "MY_TOKEN=abc123;x"}},
    ]
    trace = {"schemaVersion": 1, "traceName": f"{HOME}/t.json", "traceEvents": events, **extra}
    path.write_text(json.dumps(trace))
    return path


def nsys(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as db:
        db.executescript(
            f"""
            create table StringIds (id integer primary key, value text);
            insert into StringIds values (1, 'void f<int>'), (2, '{HOME}/run.sh'),
              (3, 'sshd: {USER}'), (7, 'step_ms 139.3 said {USER}'), (4, 'MY_TOKEN=abc123'), (5, 'pt_main_thread'), (6, 'a/b');
            create table CUPTI_ACTIVITY_KIND_KERNEL (start, end, shortName, globalPid);
            insert into CUPTI_ACTIVITY_KIND_KERNEL values (10, 20, 1, {7 << 24}),
              (20, 30, 6, {7 << 24}), (30, 40, null, {7 << 24});
            create table PROCESSES (globalPid, pid, name);
            insert into PROCESSES values ({7 << 24}, 7, 'python'), ({8 << 24}, 8, 'vault-agent');
            create table ThreadNames (nameId, priority, globalTid);
            insert into ThreadNames values (5, 20, {(7 << 24) | 9}), (3, 20, {(8 << 24) | 8});
            create table META_DATA_CAPTURE (name, value);
            insert into META_DATA_CAPTURE values ('RATE_HZ', '0'),
              ('PROCESS_0:USER_NAME', '{USER}'), ('PROCESS_0:ARGUMENT_0', '--key=topsecret');
            create table META_DATA_EXPORT (name, value);
            insert into META_DATA_EXPORT values ('EXPORT_HOST', '{HOST}'),
              ('EXPORT_SCHEMA_VERSION', '3.20.3');
            create table TARGET_INFO_SYSTEM_ENV (name, value);
            insert into TARGET_INFO_SYSTEM_ENV values ('Hostname', '{HOST}'), ('CpuCores', '32'),
              ('DeviceEnvironment', 'MY_TOKEN=abc123;HOME={HOME}');
            create table TARGET_INFO_GPU (id, name, uuid);
            insert into TARGET_INFO_GPU values (0, 'NVIDIA H200', '9ab8988a-1c9b');
            create table DIAGNOSTIC_EVENT (timestamp, text);
            insert into DIAGNOSTIC_EVENT values (0, 'output is in {HOME}/out.log');
            """
        )
        db.commit()
    return path


def rows(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as db:
        return db.execute(query).fetchall()


def test_kineto_loses_its_name_paths_and_assignments(scrub: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    scrub.scrub(kineto(tmp_path / "in.json", hostname=HOST), out)
    text = out.read_text()
    assert USER not in text
    assert "abc123" not in text
    assert HOST not in text
    assert json.loads(text)["traceName"] == "trace.json"


def test_kineto_keeps_events_times_and_kernel_names(scrub: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    scrub.scrub(kineto(tmp_path / "in.json"), out)
    events = json.loads(out.read_text())["traceEvents"]
    assert events[0] == {
        "ph": "X", "cat": "kernel", "name": "void f<int, 4>(float*)", "ts": 1.5, "dur": 2.25,
    }  # fmt: skip
    assert events[1]["name"] == "/scrubbed(7): step"


def test_compressed_kineto_is_the_same_on_every_run(scrub: ModuleType, tmp_path: Path) -> None:
    source = tmp_path / "in.json.gz"
    source.write_bytes(gzip.compress(kineto(tmp_path / "in.json").read_bytes()))
    first, second = tmp_path / "1.json.gz", tmp_path / "2.json.gz"
    scrub.scrub(source, first)
    scrub.scrub(source, second)
    assert first.read_bytes() == second.read_bytes()


def test_no_private_byte_stays_in_the_sqlite_file(scrub: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.sqlite"
    scrub.scrub(nsys(tmp_path / "in.sqlite"), out)
    data = out.read_bytes()
    for private in (HOST, USER, HOME, "abc123", "topsecret", "9ab8988a", "vault-agent"):
        assert private.encode() not in data


def test_nsys_keeps_kernels_their_names_and_versions(scrub: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.sqlite"
    scrub.scrub(nsys(tmp_path / "in.sqlite"), out)
    named = rows(
        out,
        "select start, value from CUPTI_ACTIVITY_KIND_KERNEL join StringIds on id = shortName",
    )
    assert named == [(10, "void f<int>"), (20, "a/b")]
    assert rows(out, "select value from META_DATA_EXPORT where name like '%SCHEMA%'") == [
        ("3.20.3",)
    ]
    assert rows(out, "select value from TARGET_INFO_SYSTEM_ENV where name = 'CpuCores'") == [
        ("32",)
    ]


def test_nsys_forgets_threads_of_other_programs(scrub: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.sqlite"
    scrub.scrub(nsys(tmp_path / "in.sqlite"), out)
    assert rows(out, "select value from ThreadNames join StringIds on id = nameId") == [
        ("pt_main_thread",)
    ]


def test_the_input_is_left_as_it_was(scrub: ModuleType, tmp_path: Path) -> None:
    source = nsys(tmp_path / "in.sqlite")
    before = source.read_bytes()
    scrub.scrub(source, tmp_path / "out.sqlite")
    assert source.read_bytes() == before


def test_a_value_that_stays_fails_and_leaves_no_file(
    scrub: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = nsys(tmp_path / "in.sqlite")
    with closing(sqlite3.connect(source)) as db:
        db.execute(f"insert into DIAGNOSTIC_EVENT values (1, 'host {HOST} is up')")
        db.commit()
    out = tmp_path / "out.sqlite"
    assert scrub.main([str(source), str(out)]) == 1
    assert not out.exists()
    assert HOST in capsys.readouterr().err


def test_a_file_that_is_no_trace_is_refused(
    scrub: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in.json"
    source.write_text("[]")
    assert scrub.main([str(source), str(tmp_path / "out.json")]) == 1
    assert "no traceEvents" in capsys.readouterr().err
