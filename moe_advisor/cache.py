"""A folder of earlier work, addressed by content: the same input gives the same entry.

A key is a digest of the input's bytes, of this program's own code and of the options that matter.
Entries are written whole or not at all and carry a digest, so any number of programs may share the
folder, and a damaged entry is no entry. The folder stays below a limit: what was not used for
longest goes first.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from moe_advisor import __version__
from moe_advisor.measure.partial import RankPartial
from moe_advisor.model import CaptureIssue, InputInfo

LIMIT_BYTES = 4 << 30
"""Partials of 1,024 small ranks take about 100 MB: room for many runs."""

_SUFFIX = ".moe-cache"
_DIGEST_BYTES = 32
_READ_BYTES = 1 << 20
_CODE = (".py", ".yaml", ".json")
_ROOM_AFTER = 0.8  # evict down to this share of the limit, so that not every write evicts


class Entry(msgspec.Struct, frozen=True):
    """What one input gives: its description, what was found wrong, and its ranks' partials."""

    info: InputInfo
    issues: tuple[CaptureIssue, ...]
    partials: tuple[RankPartial, ...]


def content_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or of a folder's names and bytes. Raises OSError."""
    if not path.is_dir():
        return _file_digest(path)
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")):
        if part.is_file():
            digest.update(f"{part.relative_to(path)}\0{_file_digest(part)}\0".encode())
    return digest.hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def key_of(*parts: str | None) -> str:
    """The key for these parts, in this order, of this version of the program."""
    digest = hashlib.sha256(f"{__version__}\0{_code_digest()}".encode())
    for part in parts:
        digest.update(b"\1" if part is None else b"\0" + hashlib.sha256(part.encode()).digest())
    return digest.hexdigest()


@cache
def _code_digest() -> str:
    """Of this package and the shipped rules: an edited checkout must not meet its old entries."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for folder in (root, root.parent / "rules"):
        for path in sorted(folder.rglob("*")):
            if path.suffix in _CODE and path.is_file():
                digest.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


class Cache:
    """Entries in `folder`, which is made when the first one is written."""

    def __init__(self, folder: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes

    def get(self, key: str) -> bytes | None:
        """The bytes kept under `key`; None where there are none, or they are damaged."""
        path = self._path(key)
        try:
            data = path.read_bytes()
            os.utime(path)  # used just now: evicted last
        except OSError:
            return None
        body = data[_DIGEST_BYTES:]
        return body if hashlib.sha256(body).digest() == data[:_DIGEST_BYTES] else None

    def put(self, key: str, body: bytes) -> None:
        """Keeps `body` under `key`. A folder that can't be written keeps nothing."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".new-", delete=False) as file:
                try:
                    file.write(hashlib.sha256(body).digest() + body)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise

    def trim(self) -> None:
        """Removes what was not used for longest until the folder is below its limit."""
        found: list[tuple[float, int, str]] = []
        for entry in _entries(self._folder):
            with contextlib.suppress(OSError):  # another program may have removed it
                status = entry.stat()
                found.append((status.st_mtime, status.st_size, entry.path))
        total = sum(size for _, size, _ in found)
        if total <= self._limit_bytes:
            return
        for _, size, path in sorted(found):
            with contextlib.suppress(OSError):
                os.unlink(path)
            total -= size
            if total <= self._limit_bytes * _ROOM_AFTER:
                return

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / (key + _SUFFIX)


def _entries(folder: Path) -> Iterable["os.DirEntry[str]"]:
    with contextlib.suppress(OSError), os.scandir(folder) as shelves:
        for shelf in shelves:
            if len(shelf.name) == 2 and shelf.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError), os.scandir(shelf.path) as entries:
                    yield from (entry for entry in entries if entry.name.endswith(_SUFFIX))


# ---------------------------------------------------------------------------------- as bytes


def encode(entry: Entry) -> bytes:
    """An entry as bytes: plain data, never code, since a cache folder may be shared."""
    return msgspec.msgpack.encode(entry, enc_hook=_plain)


def decode(data: bytes) -> Entry | None:
    """The entry in `data`; None if it is none."""
    try:
        return msgspec.msgpack.decode(data, type=Entry, dec_hook=_from_plain)
    except (msgspec.DecodeError, ValueError, TypeError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.tobytes()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be cached")


def _from_plain(kind: Any, value: Any) -> Any:
    dtype = np.dtype(value[0])
    if dtype.kind not in "iufb":
        raise ValueError(f"unexpected numbers {dtype}")
    del kind
    return np.frombuffer(value[1], dtype).copy()
