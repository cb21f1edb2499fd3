"""Inputs elsewhere are copied, read and forgotten; addresses stay out of messages and results."""

import contextlib
import functools
import gzip
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moe_advisor import analysis, bounded, remote
from moe_advisor.api import analyze
from moe_advisor.cli import cli
from moe_advisor.errors import ConfigError, InputError
from moe_advisor.output.json_output import encode

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

Traces = Callable[[str], list[Path]]
ROOT = Path(__file__).parents[2]
RANKS = 8
pytestmark = pytest.mark.filterwarnings("ignore")  # of fsspec and what it imports


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        """Nothing."""


class _Server(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        """A reader that has seen enough hangs up."""


@contextlib.contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a web server for `folder`."""
    handler = functools.partial(_Quiet, directory=str(folder))
    with _Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.fixture(scope="module")
def ranks(real_trace: Traces, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight ranks of one step, in four expert-parallel groups of two."""
    folder = tmp_path_factory.mktemp("elsewhere") / "ranks"
    command = [sys.executable, ROOT / "benchmarks" / "make_big_trace.py", "ranks"]
    command += [*real_trace("torch/base"), folder, "--ranks", str(RANKS), "--steps", "1"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of its own, to look for what is left."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return folder


def stored(**files: bytes) -> None:
    """Puts files into fsspec's store in memory, with nothing else in it."""
    store = fsspec.filesystem("memory")
    store.store.clear()
    for name, body in files.items():
        store.pipe_file(f"/{name.replace('__', '/')}", body)


def run(*arguments: object) -> None:
    cli.main([str(one) for one in arguments], standalone_mode=False)


def test_a_remote_file_and_a_remote_glob_are_copied_and_removed() -> None:
    stored(**{"traces__a.json": b"a", "traces__b.json": b"b"})
    with remote.local_copies(["memory://traces/*.json", "here.json"]) as paths:
        assert [Path(path).name for path in paths] == ["a.json", "b.json", "here.json"]
        assert Path(paths[1]).read_bytes() == b"b"
        assert paths[2] == "here.json"
    assert not Path(paths[0]).exists()


def test_a_remote_folder_stands_for_its_traces_and_keeps_its_folders() -> None:
    stored(
        run__n1__rank0=b"", **{"run__n1__rank0.json": b"1", "run__n2__rank0.json": b"2",
        "run__model.pt": b"3", "run__result.json": b"4", "run__.json": b"5"},
    )  # fmt: skip
    with remote.local_copies(["memory://run"]) as (folder,):
        found = {str(one.relative_to(folder)) for one in Path(folder).rglob("*") if one.is_file()}
    assert found == {"n1/rank0.json", "n2/rank0.json"}


def test_local_paths_pass_unchanged() -> None:
    with remote.local_copies(["a/b.json", "C:/x"]) as paths:
        assert paths == ("a/b.json", "C:/x")


def test_what_cant_be_copied_is_one_line_without_the_address() -> None:
    stored()
    with (
        pytest.raises(InputError) as caught,
        remote.local_copies(["memory://secret-bucket/missing.json"]),
    ):
        pass
    assert str(caught.value) == "memory://…/missing.json: there is no such file"
    for glob in ("memory://secret-bucket/*.json", "memory://secret-bucket/[ab].json"):
        with pytest.raises(InputError, match="matches nothing"), remote.local_copies([glob]):
            pass


def test_a_name_that_leads_out_of_its_folder_is_refused() -> None:
    store = fsspec.filesystem("memory")
    stored()
    store.store["/run/a.json"] = store.store["/run/../../b.json"] = (
        store.pipe_file("/x", b"") or (store.store["/x"])
    )
    with pytest.raises(InputError, match="leads out"), remote.local_copies(["memory://run/**"]):
        pass


def test_a_file_above_the_bound_is_not_copied(temporary: Path) -> None:
    stored(**{"big.json": bytes(5000)})
    with (
        bounded.using(bounded.Bounds(file_gib=1e-6)),
        pytest.raises(InputError, match=r"memory://…/big.json: more than .* --max-file GIB"),
        remote.local_copies(["memory://big.json"]),
    ):
        pass
    assert not list(temporary.iterdir())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://bucket/secret/rank0.json", "s3://…/rank0.json: s3:// needs .*: pip install s3fs"),
        ("gs://bucket/secret/rank0.json", "gs://…/rank0.json: gs:// needs .*: pip install gcsfs"),
    ],
)
def test_a_missing_package_is_named(
    url: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package in ("s3fs", "gcsfs"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=message) as caught, remote.local_copies([url]):
        pass
    assert "secret" not in str(caught.value)


def test_without_the_extra_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with (
        pytest.raises(ConfigError, match=r"pip install 'moe-advisor\[remote\]'"),
        remote.local_copies(["https://host/rank0.json.gz"]),
    ):
        pass


def test_every_verb_that_takes_traces_reads_them_from_a_web_server(
    ranks: Path, tmp_path: Path, temporary: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "moe-advisor.toml").write_text(
        '[[budget]]\nname = "step"\nexpect = "m.step_ms <= 1000000.0"\n'
    )
    with served(ranks) as host:
        trace = f"{host}/rank0.json?token=secret"
        run("analyze", trace, "-q", "--format", "json=run.json")
        expected = encode(analysis.analyze([str(ranks / "rank0.json")]))
        assert (tmp_path / "run.json").read_bytes() == expected
        with served(tmp_path) as results:
            run("render", f"{results}/run.json", "-q", "--format", "markdown=run.md")
        run("check", trace)
        run("compare", trace, f"{host}/rank1.json", "--format", "json=compare.json")
        run("whatif", trace)
        run("history", "add", "runs.db", trace)
        run("scrub", trace, "scrubbed.json")
        with pytest.raises(InputError, match=r"http://…/rank9.json: there is no such file"):
            run("check", f"{host}/rank9.json?token=secret")
    sides = json.loads((tmp_path / "compare.json").read_text())
    said = capsys.readouterr()
    written = [one for one in tmp_path.iterdir() if one.is_file()]
    assert {one.name for one in written} == {
        "moe-advisor.toml", "run.json", "run.md", "compare.json", "runs.db", "scrubbed.json",
    }  # fmt: skip
    assert not any(b"secret" in one.read_bytes() for one in written)
    assert "secret" not in said.out + said.err + json.dumps(sides)
    assert "rank0" in json.dumps(sides)
    assert not list(temporary.iterdir())


def test_a_remote_folder_of_results_holds_the_repeats_of_one_side(
    ranks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = encode(analysis.analyze([str(ranks / "rank0.json")]))
    stored(**{f"base__{n}.moe.json": found for n in range(9)}, **{"new.moe.json": found})
    run("compare", "memory://base", "memory://new.moe.json", "-q", "--format", "json=c.json")
    found = json.loads((tmp_path / "c.json").read_text())
    assert [found[side]["repeats"] for side in ("base", "new")] == [9, 1]


def test_many_remote_ranks_give_the_same_bytes_and_leave_nothing(
    ranks: Path, temporary: Path
) -> None:
    options = analysis.Options(jobs=2)
    with served(ranks) as host:
        found = encode(analysis.analyze([f"{host}/"], options))
        globbed = encode(analysis.analyze([f"{host}/rank*.json"], options))
    assert found == globbed == encode(analysis.analyze([str(ranks)], options))
    assert not list(temporary.iterdir())


def test_many_remote_ranks_are_copied_by_their_workers_alone(
    ranks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in ranks.iterdir():
        fsspec.filesystem("memory").pipe_file(f"/job/{path.name}", path.read_bytes())
    with remote.inputs(["memory://job/*.json"]) as found:
        assert [one.name for one in found] == [f"rank{n}.json" for n in range(RANKS)]
        assert all(isinstance(one, remote.RemoteFile) for one in found)
        assert not any("memory" in repr(one) for one in found)
        assert sum(one.size_bytes for one in found) == sum(
            path.stat().st_size for path in ranks.iterdir()
        )


def test_a_remote_rank_that_cant_be_read_is_named_and_the_rest_stands(
    ranks: Path, tmp_path: Path
) -> None:
    for path in ranks.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "rank3.json").unlink()
    (tmp_path / "rank3.json").write_text("{}")
    with served(tmp_path) as host:
        found = analysis.analyze([f"{host}/"], analysis.Options(jobs=2))
    (lost,) = (issue for issue in found.capture.issues if issue.id == "input-unreadable")
    assert lost.message.startswith("rank3.json: ")
    assert len(found.ranks) == RANKS - 1


def test_a_sample_of_remote_ranks_takes_whole_groups_by_their_heads(
    ranks: Path, tmp_path: Path
) -> None:
    for path in ranks.iterdir():
        (tmp_path / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), 1))
    with served(tmp_path) as host:
        found = analyze(f"{host}/", sample=4, jobs=1)
    assert [one.rank for one in found.data.ranks] == [0, 1, 6, 7]
    messages = {issue.id: issue.message for issue in found.data.capture.issues}
    assert messages["sampled"].startswith("a sample: 4 of 8 inputs, 2 of 4 whole")


def test_a_copy_that_hangs_ends_with_the_signal_and_leaves_nothing(temporary: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(120)
        port = server.getsockname()[1]
        url = f"http://127.0.0.1:{port}/rank0.json"
        process = subprocess.Popen(
            [sys.executable, "-m", "moe_advisor", "analyze", url, "-q"],
            cwd=temporary,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        connection, _ = server.accept()  # it waits for an answer that never comes
        with connection:
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=120)
    assert (process.returncode, said) == (130, b"moe-advisor: interrupted\n")
    assert not list(temporary.iterdir())


def test_a_web_server_may_take_as_long_as_it_says_something() -> None:
    system, _ = remote._system("https://host/rank0.json.gz")
    patience = system.client_kwargs["timeout"]
    assert (patience.total, patience.sock_read) == (None, remote.SILENCE_S)
