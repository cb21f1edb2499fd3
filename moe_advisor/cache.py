"""A folder of earlier work, addressed by content: the same input gives the same entry.

A key is a digest of the input's bytes, of this program's own code and of the options that matter.
Entries are written whole or not at all and carry a digest, so any number of programs may share the
folder, and a damaged entry is no entry. The folder stays below a limit: what was not used for
longest goes first.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

from moe_advisor import __version__

LIMIT_BYTES = 4 << 30
"""Partials of 1,024 small ranks take about 100 MB: room for many runs."""

EXPORTS_BYTES = 16 << 30
"""For the exports of nsys reports: ten million kernels take 2.7 GB."""

STALE_S = 86_400.0
"""No analysis lasts a day: what is older and half-written belongs to none."""

_SUFFIX = ".moe-cache"
_PART = ".new-"
_DIGEST_BYTES = 32
_READ_BYTES = 4 << 20  # long enough that other threads seldom make a digest wait
_PIECE_BYTES = 64 << 20
_READERS = 4
"""Pieces of a file that are read at once: what a disk and SHA-256 on so many cores keep up with."""

_NOTED_FROM_BYTES = 16 << 20
"""The digest of a larger file is noted: making it takes longer than looking a note up."""

_SETTLED_S = 2.0
"""A file that was touched so short before it is read is not noted: a second write could have the
same time, which file systems keep in steps of up to so much."""

_CODE = (".py", ".yaml", ".json")
_ROOM_AFTER = 0.8  # evict down to this share of the limit, so that not every write evicts


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
    """SHA-256 of a file's bytes; of a large file, of the digests of its pieces."""
    starts = range(0, path.stat().st_size, _PIECE_BYTES)
    if len(starts) < 2:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
        pieces = pool.map(lambda start: _piece_digest(path, start), starts)
        return hashlib.sha256(b"".join(pieces)).hexdigest()


def _piece_digest(path: Path, start: int) -> bytes:
    digest, left = hashlib.sha256(), _PIECE_BYTES
    buffer = memoryview(bytearray(_READ_BYTES))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while left and (got := file.readinto(buffer[:left])):
            digest.update(buffer[:got])
            left -= got
    return digest.digest()


def state_of(path: Path) -> str:
    """What the system changes with every write to a file, or to one in a folder. Raises OSError.

    Beside size and modification time it is the time of the last change, which no program can set,
    and the file's number, which another file in its place does not have.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return "\n".join(f"{part}\0{_touched(part)}" for part in files if part.is_file())


def _touched(path: Path) -> tuple[int, ...]:
    with path.open("rb") as file:  # a network file system answers from memory until it is opened
        now = os.fstat(file.fileno())
    return (now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns)


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

    def __init__(
        self,
        folder: Path,
        limit_bytes: int = LIMIT_BYTES,
        exports_bytes: int = EXPORTS_BYTES,
    ) -> None:
        self._folder, self._limit_bytes, self._exports_bytes = folder, limit_bytes, exports_bytes

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

    def digest(self, path: Path) -> str:
        """The `content_digest` of `path`. Raises OSError.

        Of a large file that nobody touched since it was made the last time, it is the one noted
        then, as ccache does.
        """
        if path.is_dir() or os.name != "posix" or path.stat().st_size < _NOTED_FROM_BYTES:
            return content_digest(path)
        before, began_s = _touched(path), time.time()
        key = key_of("digest", repr(before))
        noted = self.get(key)
        if noted is not None:
            return noted.decode("ascii", "replace")
        found = content_digest(path)
        settled = began_s - max(before[-2:]) / 1e9 >= _SETTLED_S
        if settled and _touched(path) == before:
            self.put(key, found.encode())
        return found

    def put(self, key: str, body: bytes) -> None:
        """Keeps `body` under `key`. A folder that can't be written keeps nothing."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=_PART, delete=False) as file:
                try:
                    file.write(hashlib.sha256(body).digest() + body)
                    file.close()
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise

    def trim(self) -> None:
        """Removes what was not used for longest until the folder is below its limits.

        What a program that was killed left half-written goes after a day.
        """
        _trim(_entries(self._folder), self._limit_bytes)
        _trim(_exports(self._folder), self._exports_bytes)
        _sweep(self._folder)

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / (key + _SUFFIX)


def _trim(entries: Iterable["os.DirEntry[str]"], limit_bytes: int) -> None:
    found: list[tuple[float, int, str]] = []
    for entry in entries:
        with contextlib.suppress(OSError):  # another program may have removed it
            status = entry.stat()
            found.append((status.st_mtime, status.st_size, entry.path))
    total = sum(size for _, size, _ in found)
    if total <= limit_bytes:
        return
    for _, size, path in sorted(found):
        with contextlib.suppress(OSError):
            os.unlink(path)
        total -= size
        if total <= limit_bytes * _ROOM_AFTER:
            return


def _exports(folder: Path) -> Iterable["os.DirEntry[str]"]:
    from moe_advisor.ingest import nsys_report  # with polars: a look-up needs neither

    begin, end = nsys_report.CACHED
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        yield from (e for e in entries if e.name.startswith(begin) and e.name.endswith(end))


def _sweep(folder: Path) -> None:
    """Removes half-written entries and exports of programs that were killed."""
    from moe_advisor.ingest import nsys_report

    old = time.time() - STALE_S
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.name.startswith(nsys_report.TEMPORARY) and entry.stat().st_mtime < old:
                    shutil.rmtree(entry.path, ignore_errors=True)
                elif len(entry.name) == 2 and entry.is_dir(follow_symlinks=False):
                    for part in Path(entry.path).glob(f"{_PART}*"):
                        if part.stat().st_mtime < old:
                            part.unlink()


def _entries(folder: Path) -> Iterable["os.DirEntry[str]"]:
    with contextlib.suppress(OSError), os.scandir(folder) as shelves:
        for shelf in shelves:
            if len(shelf.name) == 2 and shelf.is_dir(follow_symlinks=False):
                with contextlib.suppress(OSError), os.scandir(shelf.path) as entries:
                    yield from (entry for entry in entries if entry.name.endswith(_SUFFIX))
