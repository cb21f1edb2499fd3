"""Finds the inputs a user means and loads each with the reader of its format."""

import glob
import os
import re
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moe_advisor.errors import InputError
from moe_advisor.ingest.sniff import ACCEPTED, detect, is_parquet_folder
from moe_advisor.privacy import display_name

if TYPE_CHECKING:
    from moe_advisor.ingest.json_stream import StreamLimits
    from moe_advisor.model import LoadedInput

MAX_DEPTH = 8  # folders below the one named; rank folders are one or two deep
MAX_FILES = 200_000  # in one folder tree: a hundred times the largest job's number of ranks

_OWN_OUTPUT = re.compile(
    r"\.moe\.(?:json|html|md|xml|txt|perfetto\.json|parquet|csv)$"
    r"|^(?:result\.json|report\.html|step\.perfetto\.json)$"
)
_GLOB = re.compile(r"[*?\[]")
_DIGITS = re.compile(r"(\d+)")
_TRACE_ENDINGS = (".nsys-rep", ".sqlite", ".json.gz", ".trace.json", ".pt.trace")


def natural_key(path: Path) -> tuple[tuple[tuple[int, int | str], ...], str]:
    """Sorts rank2 before rank10, in every part of the path."""
    pieces = _DIGITS.split(str(path))
    return tuple((0, int(p)) if p.isdecimal() and len(p) < 4000 else (1, p) for p in pieces), str(
        path
    )


def own_output(name: str) -> bool:
    """Whether a file of this name is what this program wrote, and no input."""
    return bool(_OWN_OUTPUT.search(name))


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file of a folder that has a trace's name, and why it was passed over.

    `expected` says that its name differs from a trace's beside it only by numbers: a rank.
    """

    reason: str
    expected: bool


def find_inputs(paths: Sequence[str], skipped: list[Skipped] | None = None) -> list[Path]:
    """The trace files, parquet folders and results that `paths` mean, in natural order, each once.

    A path is a file, a folder (searched with its folders) or a glob. A folder gives only what is
    recognised as a trace, without this program's own outputs; a file named is always taken. What
    a folder holds under a trace's name and is none is added to `skipped`.
    Raises InputError where a path means nothing.
    """
    if not paths:
        raise InputError("no input given; name a trace file, a folder of ranks or a glob")
    found: dict[tuple[int, int], Path] = {}
    passed: list[Skipped] = [] if skipped is None else skipped
    for text in paths:
        for path in _expand(text, passed):
            try:
                status = path.stat()
            except OSError as error:
                raise InputError(_unreadable(path, error)) from error
            found.setdefault((status.st_dev, status.st_ino), path)
    return sorted(found.values(), key=natural_key)


def _unreadable(path: Path, error: OSError) -> str:
    return f"{display_name(path)}: can't be read: {error.strerror or type(error).__name__}"


def _expand(text: str, skipped: list[Skipped]) -> list[Path]:
    path = Path(text)
    try:
        mode: int | None = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise InputError(_unreadable(path, error)) from error
    except ValueError as error:
        raise InputError(f"{display_name(text)}: not a file name") from error
    if mode is None:
        if not _GLOB.search(text):
            raise InputError(f"{display_name(path)}: no such file or folder")
        matches = [Path(match) for match in glob.iglob(text, recursive=True)]
        inside = [item for match in matches for item in _expand_match(match, skipped)]
        if not inside:
            what = "matches no file" if not matches else "matches no trace"
            raise InputError(f"{display_name(path)}: the pattern {what}")
        return inside
    if stat.S_ISDIR(mode):
        inside = list(_folder(path, skipped))
        if not inside:
            raise InputError(
                f"{display_name(path.absolute())}: the folder holds no trace; name the folder "
                f"with the files of the ranks"
            )
        return inside
    if not stat.S_ISREG(mode):
        raise InputError(
            f"{display_name(path)}: not a regular file; save the trace to a file first"
        )
    return [path]


def _expand_match(path: Path, skipped: list[Skipped]) -> list[Path]:
    if path.is_dir():
        return list(_folder(path, skipped))
    return [path] if path.is_file() and not _OWN_OUTPUT.search(path.name) else []


def _folder(root: Path, skipped: list[Skipped]) -> Iterator[Path]:
    """Traces in `root` and its folders; a folder reached twice, also by links, is read once."""
    if is_parquet_folder(root):
        yield root
        return
    seen: set[tuple[int, int]] = set()
    files = 0
    for folder, names, here in os.walk(root, followlinks=True):
        at = Path(folder)
        try:
            status = at.stat()
        except OSError:
            names.clear()
            continue
        if (status.st_dev, status.st_ino) in seen or len(at.relative_to(root).parts) > MAX_DEPTH:
            names.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        exports = [name for name in names if is_parquet_folder(at / name)]
        yield from (at / name for name in sorted(exports))
        names[:] = sorted(n for n in names if n not in exports and not n.startswith("."))
        files += len(here)
        if files > MAX_FILES:
            raise InputError(
                f"{display_name(root.absolute())}: more than {MAX_FILES:,} files; name the folder "
                f"with the traces"
            )
        yield from _traces(at, here, skipped)


def _traces(folder: Path, names: Iterable[str], skipped: list[Skipped]) -> Iterator[Path]:
    """The traces among the files `names` of `folder`.

    A report whose export lies beside it, and is not older, is the same capture: only the export.
    """
    found: dict[str, Path] = {}
    reports: dict[str, Path] = {}
    unknown: dict[str, str] = {}
    for name in sorted(names):
        path = folder / name
        if _OWN_OUTPUT.search(name) or name.startswith("."):
            continue
        try:
            kind = detect(path)
        except InputError as error:
            unknown[name] = str(error)
            continue
        if kind == "nsys-rep":
            reports[path.stem] = path
        elif kind != "result":
            found[name] = path
    for stem, report in reports.items():
        export = found.get(f"{stem}.sqlite")
        if export is None or export.stat().st_mtime < report.stat().st_mtime:
            if export is not None:
                del found[export.name]
            found[report.name] = report
    shapes = {_DIGITS.sub("#", name) for name in found}
    for name, reason in unknown.items():
        expected = _DIGITS.sub("#", name) in shapes
        if expected or name.lower().endswith(_TRACE_ENDINGS):
            skipped.append(Skipped(reason.removesuffix(f"; {ACCEPTED}"), expected))
    yield from found.values()


def load(
    path: Path,
    kind: str,
    *,
    limits: "StreamLimits | None" = None,
    nsys: Path | None = None,
    cache: Path | None = None,
) -> "LoadedInput":
    """Loads `path`, of the format that `sniff.detect` told, with that format's reader.

    `nsys` is the program that exports a report, into `cache` or a temporary folder. Raises
    InputError if nothing can be read.
    """
    if kind == "kineto":
        from moe_advisor.ingest import kineto

        return kineto.load(path) if limits is None else kineto.load(path, limits=limits)
    if kind == "nsys-sqlite":
        from moe_advisor.ingest import nsys_sqlite

        return nsys_sqlite.load(path)
    if kind == "nsys-rep":
        from moe_advisor.ingest import nsys_report

        return nsys_report.load(path, nsys=nsys, cache=cache)
    if kind == "nsys-parquet":
        from moe_advisor.ingest import nsys_parquet

        return nsys_parquet.load(path)
    raise InputError(f"{display_name(path)}: a {kind} holds no trace to load")
