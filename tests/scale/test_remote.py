"""Inputs elsewhere are copied, read and forgotten; addresses stay out of messages."""

from pathlib import Path

import pytest

from moe_advisor import remote
from moe_advisor.errors import InputError

fsspec = pytest.importorskip("fsspec")


def test_a_remote_file_and_a_remote_glob_are_copied_and_removed() -> None:
    store = fsspec.filesystem("memory")
    for name in ("a.json", "b.json"):
        store.pipe_file(f"/traces/{name}", name.encode())
    with remote.local_copies(["memory://traces/*.json", "here.json"]) as paths:
        assert [Path(path).name for path in paths] == ["a.json", "b.json", "here.json"]
        assert Path(paths[1]).read_bytes() == b"b.json"
        assert paths[2] == "here.json"
    assert not Path(paths[0]).exists()


def test_local_paths_pass_unchanged() -> None:
    with remote.local_copies(["a/b.json", "C:/x"]) as paths:
        assert paths == ("a/b.json", "C:/x")


def test_what_cant_be_copied_is_one_line_without_the_address() -> None:
    with (
        pytest.raises(InputError) as caught,
        remote.local_copies(["memory://secret-bucket/missing.json?token=abc"]),
    ):
        pass
    assert str(caught.value).startswith("memory://…/missing.json: ")
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)
