"""Where outputs go and how they get there: planned first, refused early, written at once."""

import contextlib
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from moe_advisor.errors import OutputError

_BESIDE = {
    "html": ".moe.html",
    "json": ".moe.json",
    "markdown": ".moe.md",
    "junit": ".moe.xml",
    "text": ".moe.txt",
    "perfetto": ".moe.perfetto.json",
    "parquet": ".moe.parquet",
    "csv": ".moe.csv",
}
_IN_FOLDER = {
    "html": "report.html",
    "json": "result.json",
    "markdown": "summary.md",
    "junit": "junit.xml",
    "text": "summary.txt",
    "perfetto": "step.perfetto.json",
    "parquet": "activities.parquet",
    "csv": "activities.csv",
}
KINDS = tuple(_BESIDE)
TRACE_KINDS = ("perfetto", "parquet", "csv")
"""Kinds that are made from the traces themselves: a result does not hold every activity."""

Fill = Callable[[IO[bytes]], None]

_STRIPPED = (".gz", ".xz", ".json", ".sqlite", ".nsys-rep", ".moe")


@dataclass(frozen=True, slots=True)
class Output:
    """One output; `path` is None for standard output."""

    kind: str
    path: Path | None


def stem(name: str) -> str:
    """A file's name without the endings of traces and results; never empty."""
    shortened = name
    while True:
        ending = next((end for end in _STRIPPED if shortened.lower().endswith(end)), None)
        if ending is None or len(shortened) == len(ending):
            return shortened or name
        shortened = shortened[: -len(ending)]


def plan(
    formats: Sequence[tuple[str, Path | None]],
    inputs: Sequence[Path],
    folder: Path | None,
) -> list[Output]:
    """The outputs asked for, by kind and optional path, with their places.

    `folder` is the value of `-o`, `Path("-")` meaning standard output. Raises OutputError.
    """
    if folder == Path("-"):
        if len(formats) != 1:
            raise OutputError(
                f"-o - writes one format to standard output, {len(formats)} were asked for: "
                "name one with --format"
            )
        return [Output(formats[0][0], None)]
    outputs = []
    for kind, path in formats:
        if path is not None and str(path) == "-":
            outputs.append(Output(kind, None))
        elif path is not None:
            outputs.append(Output(kind, path))
        else:
            outputs.append(Output(kind, _default_path(kind, inputs, folder)))
    named = [output.path for output in outputs if output.path is not None]
    for path in named:
        if sum(_same(path, other) for other in named) > 1:
            raise OutputError(f"{path}: two formats would write this file: give each its own path")
    if sum(output.path is None for output in outputs) > 1:
        raise OutputError("two formats would go to standard output: give one of them a path")
    return outputs


def _default_path(kind: str, inputs: Sequence[Path], folder: Path | None) -> Path:
    if folder is None and len(inputs) == 1:
        return Path(stem(inputs[0].name) + _BESIDE[kind])
    return (folder or Path()) / _IN_FOLDER[kind]


def refuse(outputs: Iterable[Output], inputs: Iterable[Path], *, force: bool = False) -> None:
    """Raises OutputError for an output that may not be written; called before any work."""
    known = [path for path in inputs if path.exists()]
    for output in outputs:
        path = output.path
        if path is None:
            continue
        if any(_same(path, other) for other in known):
            raise OutputError(f"{path}: is an input and is never written over: name another path")
        _refuse_existing(path, force)


def _refuse_existing(path: Path, force: bool) -> None:
    if path.is_dir():
        raise OutputError(f"{path}: is a folder: name a file, or give the folder with -o")
    if not force and os.path.lexists(path) and not _is_special(path):
        raise OutputError(f"{path}: exists already: give --force to replace it")
    folder = path.parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise OutputError(f"{path}: {folder} is not a folder: name another path")


def write(path: Path, data: bytes | str | Fill, *, force: bool = False) -> None:
    """Writes `data` whole or not at all; text as UTF-8, line ends as they are. Folders are made.

    `data` may be a function that writes into the open file, for what is too large to hold. Without
    `force` an existing file is left alone even if it appeared a moment ago. Raises OutputError.
    """
    content = data.encode() if isinstance(data, str) else data
    _refuse_existing(path, force)
    try:
        if _is_special(path):
            with path.open("wb") as file:
                _pour(content, file)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content, force)
    except FileExistsError:
        raise OutputError(f"{path}: exists already: give --force to replace it") from None
    except OSError as error:
        raise OutputError(
            f"{path}: can't be written ({error.strerror}): name another place"
        ) from None


def _pour(content: bytes | Fill, file: IO[bytes]) -> None:
    if isinstance(content, bytes):
        file.write(content)
    else:
        content(file)


def _replace(path: Path, content: bytes | Fill, force: bool) -> None:
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            _pour(content, file)
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(path)
        else:
            _link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def publish(temporary: Path, path: Path, *, force: bool = False) -> None:
    """Gives the finished file `temporary`, in the folder of `path`, that name.

    Raises FileExistsError where the name is taken and `force` is not given.
    """
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    if force:
        temporary.replace(path)
    else:
        _link(temporary, path)


def _link(temporary: Path, path: Path) -> None:
    """Gives the finished file its name unless that name is taken."""
    try:
        os.link(temporary, path, follow_symlinks=False)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(path):
            raise FileExistsError from None
        temporary.replace(path)


def _is_special(path: Path) -> bool:
    """A pipe or device: written through, never replaced."""
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _same(path: Path, other: Path) -> bool:
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()
