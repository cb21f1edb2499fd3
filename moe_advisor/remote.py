"""Inputs that lie elsewhere (s3://, gs://, https:// ...), read through fsspec.

Few are copied here before anything else. Many stay where they are until a worker takes one: it
copies it, measures it and removes the copy, so that the disk holds as many as there are workers and
a Dask cluster needs no common folder. Messages and names never hold an address, which may hold a
secret.
"""

import contextlib
import os
import re
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal
from urllib.parse import unquote

from moe_advisor import bounded, interrupts
from moe_advisor.errors import ConfigError, InputError
from moe_advisor.ingest.sources import MAX_DEPTH, MAX_FILES, natural_key, own_output
from moe_advisor.privacy import display_name

COPIES_AT_ONCE = 8
"""One copy waits for the network most of the time."""

MANY = 8
"""From so many files on, each is copied by the worker that reads it."""

SILENCE_S = 60.0
"""A web server that says nothing for so long is given up; how long a file takes does not matter."""

GIVE_UP_S = 2.0
"""So long a copy gets to notice that it is not wanted any more."""

HEAD_BLOCK_BYTES = 1 << 18
"""What is asked for at a time where only the head of a file is read."""

TRACE_ENDINGS = (".nsys-rep", ".sqlite", ".json", ".gz", ".pt.trace", ".parquet")
"""What is copied of a folder elsewhere: looking into every file would mean copying it."""

PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
}
"""Kind of address -> the package that reads it beside fsspec."""

_URL = re.compile(r"^[a-zA-Z][a-zA-Z0-9+.-]+://")  # two letters or more: C:// is a drive
_WEB = re.compile(r"^https?://", re.IGNORECASE)
_GLOB = re.compile(r"[*?\[]")
_WEB_GLOB = re.compile(r"[*\[]")  # a question mark begins the query of a web address


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file elsewhere."""

    url: str = field(repr=False)
    name: str
    """Its path below what the user named, safe to be made here."""
    size_bytes: int
    """0 where the store does not say."""

    @contextlib.contextmanager
    def open(self, mode: Literal["rb"], /) -> Iterator[IO[bytes]]:
        """Its bytes, read as they are asked for. Raises InputError where that fails."""
        with _told(self.url):
            system, inside = _system(self.url)
            with system.open(inside, mode, block_size=HEAD_BLOCK_BYTES) as file:
                yield file


def many_for(executor: str) -> int:
    """From so many remote files on, workers copy them; a cluster's see no folder of ours."""
    return 1 if executor == "dask" else MANY


def is_remote(text: str) -> bool:
    """Whether `text` names an input elsewhere."""
    return bool(_URL.match(text))


@contextlib.contextmanager
def local_copies(paths: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """`paths` with every remote one replaced by a copy, which goes when the context ends.

    A remote path is a file, or a folder or glob where the store can list; for a folder stands the
    folder of its copies. Raises ConfigError without the packages that it needs, InputError where a
    path can't be read.
    """
    with inputs(paths, many=MAX_FILES + 1) as found:
        yield tuple(one for one in found if isinstance(one, str))


@contextlib.contextmanager
def inputs(
    paths: Sequence["str | RemoteFile"], many: int = MANY, *, repeats: bool = False
) -> Iterator[tuple["str | RemoteFile", ...]]:
    """As `local_copies`, but `many` remote files and more are listed and not copied.

    With `repeats` a folder may hold results or runs instead of ranks: where its names allow that,
    it is copied, earlier results included.
    """
    if not any(isinstance(path, str) and is_remote(path) for path in paths):
        yield tuple(paths)
        return
    with tempfile.TemporaryDirectory(prefix="moe-advisor-", ignore_cleanup_errors=True) as scratch:
        places: list[tuple[str | RemoteFile, ...]] = []
        wanted: list[tuple[RemoteFile, Path]] = []
        for number, path in enumerate(paths):
            if isinstance(path, RemoteFile) or not is_remote(path):
                places.append((path,))
                continue
            files, is_folder = _listed(path, repeats)
            if repeats and is_folder and any(map(_may_be_run, files)):
                many = MAX_FILES + 1
            folder = Path(scratch) / str(number)
            targets = [folder / one.name for one in files]
            wanted += zip(files, targets, strict=True)
            places.append((str(folder),) if is_folder else tuple(map(str, targets)))
        if len(wanted) >= many and not any(one.name.endswith(".parquet") for one, _ in wanted):
            remote = [one for one, _ in wanted]
            yield (*(p for p in paths if isinstance(p, RemoteFile) or not is_remote(p)), *remote)
            return
        _copy(wanted)
        yield tuple(one for place in places for one in place)


@contextlib.contextmanager
def here(one: "Path | RemoteFile", scratch: str | None = None) -> Iterator[Path]:
    """The path of `one`: of a remote file that of a copy below `scratch`, for this context."""
    if isinstance(one, Path):
        yield one
        return
    with tempfile.TemporaryDirectory(
        prefix="moe-advisor-", dir=scratch, ignore_cleanup_errors=True
    ) as folder:
        target = Path(folder) / display_name(one.name)
        _copy([(one, target)])
        yield target


def shown(url: str) -> str:
    """An address without what may be secret: `https://…/rank0.json.gz`."""
    scheme, _, _ = url.partition("://")
    return f"{scheme}://…/{name_of(url)}"


def name_of(url: str) -> str:
    """The name of the file or folder that an address ends in, without its query."""
    _, _, rest = url.partition("://")
    return display_name(_plain(url, rest).rstrip("/"))


def _plain(url: str, path: str) -> str:
    """`path` of a web address without its query and escapes; another one as it is."""
    return unquote(re.split(r"[?#]", path, maxsplit=1)[0]) if _WEB.match(url) else path


def _fsspec() -> Any:
    try:
        return import_module("fsspec")
    except ImportError:
        raise ConfigError("remote inputs need fsspec: pip install 'moe-advisor[remote]'") from None


def _system(url: str) -> tuple[Any, str]:
    """The store of an address, and the path in it."""
    core = _fsspec().core
    if not _WEB.match(url):
        system, inside = core.url_to_fs(url)
        return system, inside
    # Left alone, a whole download may take five minutes: enough for a small file only.
    patience = {"total": None, "sock_connect": SILENCE_S, "sock_read": SILENCE_S}
    timeout = import_module("aiohttp").ClientTimeout(**patience)
    system, inside = core.url_to_fs(url, client_kwargs={"timeout": timeout})
    return system, inside


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """Turns what a store raises into one line that does not hold the address."""
    try:
        yield
    except (ConfigError, InputError):
        raise
    except ImportError:
        scheme = url.partition("://")[0].lower()
        package = PACKAGES.get(scheme)
        what = f"pip install {package}" if package else "the package that fsspec needs for it"
        what = "pip install 'moe-advisor[remote]'" if _WEB.match(url) else what
        raise ConfigError(f"{shown(url)}: {scheme}:// needs a further package: {what}") from None
    except FileNotFoundError:
        raise InputError(f"{shown(url)}: there is no such file") from None
    except PermissionError:
        raise InputError(f"{shown(url)}: the store refuses access; are credentials set?") from None
    except Exception as error:  # every store has its own exceptions
        raise InputError(f"{shown(url)}: can't be read ({type(error).__name__})") from None


def _may_be_run(one: RemoteFile) -> bool:
    """Whether a file of a folder may be a result, or part of a run beside others."""
    return "/" in one.name or one.name.endswith(".json")


def _listed(url: str, results: bool) -> tuple[list[RemoteFile], bool]:
    """The files that a remote path means, and whether it is a folder.

    A folder's earlier results are left out without `results`.
    """
    with _told(url):
        system, inside = _system(url)
        web = bool(_WEB.match(url))
        if (_WEB_GLOB if web else _GLOB).search(inside):
            return _files(url, system, _below(system.glob(inside, detail=True), system)), False
        # Asking a web server whether an address is a folder means reading it.
        if _plain(url, inside).endswith("/") if web else system.isdir(inside):
            found = system.find(inside, maxdepth=MAX_DEPTH, detail=True)
            kept = {
                path: info
                for path, info in found.items()
                if path.startswith(inside.rstrip("/"))
                and (name := _plain(url, path).rsplit("/", 1)[-1]).endswith(TRACE_ENDINGS)
                and not name.startswith(".")
                and (results or not own_output(name))
            }
            return _files(url, system, kept), True
    return [RemoteFile(url, name_of(url), 0)], False


def _below(found: dict[str, Any], system: Any) -> dict[str, Any]:
    """What a glob found, with the files of its folders instead of the folders."""
    files: dict[str, Any] = {}
    for path, info in found.items():
        if info.get("type") == "directory":
            files |= system.find(path, maxdepth=MAX_DEPTH, detail=True)
        else:
            files[path] = info
    return files


def _files(url: str, system: Any, found: dict[str, Any]) -> list[RemoteFile]:
    """Files of a store, each under its path below the folder that all share."""
    if not found:
        raise InputError(f"{shown(url)}: matches nothing")
    if len(found) > MAX_FILES:
        raise InputError(f"{shown(url)}: more than {MAX_FILES:,} files; name the traces' folder")
    paths = sorted(found, key=lambda path: natural_key(Path(path)))
    plain = [_plain(url, path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in plain])
    files = []
    for path, full in zip(paths, plain, strict=True):
        name = os.path.relpath(full, root)
        if ".." in PurePosixPath(full).parts or ".." in PurePosixPath(name).parts:
            raise InputError(f"{shown(url)}: a file's name leads out of its folder")
        size = found[path].get("size")
        files.append(RemoteFile(system.unstrip_protocol(path), name, int(size or 0)))
    return files


def _copy(wanted: Sequence[tuple[RemoteFile, Path]]) -> None:
    """Copies files side by side; a signal, or the first that fails, ends all of it at once."""
    _fsspec()
    unwanted = threading.Event()
    limit_gib = bounded.current().file_gib  # the threads below do not inherit it
    for _, target in wanted:
        target.parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(COPIES_AT_ONCE)
    copies = [pool.submit(_copy_one, *pair, limit_gib, unwanted) for pair in wanted]
    try:
        left = set(copies)
        while left:
            done, left = wait(left, interrupts.WAIT_S, FIRST_EXCEPTION)
            for one in done:
                one.result()
    finally:
        unwanted.set()
        pool.shutdown(wait=False, cancel_futures=True)
        wait([one for one in copies if not one.cancelled()], GIVE_UP_S)


class _UnwantedError(Exception):
    """Ends a copy that nobody waits for."""


def _copy_one(one: RemoteFile, target: Path, limit_gib: float, unwanted: threading.Event) -> None:
    with _told(one.url):
        system, inside = _system(one.url)
        watch = _watch(_fsspec(), one, limit_gib, unwanted)
        system.get_file(inside, str(target), callback=watch)


def _watch(fsspec: Any, one: RemoteFile, limit_gib: float, unwanted: threading.Event) -> Any:
    """What fsspec calls after every piece of a copy."""

    class Watch(fsspec.Callback):  # type: ignore[misc]
        def call(self, hook_name: str | None = None, **more: Any) -> None:
            del hook_name, more
            if unwanted.is_set():
                raise _UnwantedError
            if max(self.value, self.size or 0, one.size_bytes) > limit_gib * bounded.GIB:
                raise InputError(
                    f"{shown(one.url)}: more than the {limit_gib:g} GiB that are read: if you "
                    "trust it, raise the limit with --max-file GIB"
                )

    return Watch()
