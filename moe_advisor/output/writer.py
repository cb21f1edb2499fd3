"""Where outputs go and how they get there: planned first, refused early, written at once."""

import contextlib
import os
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moe_advisor.errors import OutputError

_BESIDE = {
    "html": ".moe.html",
    "json": ".moe.json",
    "markdown": ".moe.md",
    "junit": ".moe.xml",
    "text": ".moe.txt",
}
_IN_FOLDER = {
    "html": "report.html",
    "json": "result.json",
    "markdown": "summary.md",
    "junit": "junit.xml",
    "text": "summary.txt",
}
KINDS = tuple(_BESIDE)

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
    *,
    endings: dict[str, str] | None = None,
) -> list[Output]:
    """The outputs asked for, by kind and optional path, with their places (design.md, 7).

    `folder` is the value of `-o`, `Path("-")` meaning standard output. `endings` adds kinds that
    are not made from a result, such as `{"parquet": ".parquet"}`. Raises OutputError.
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
            outputs.append(Output(kind, _default_path(kind, inputs, folder, endings or {})))
    named = [output.path for output in outputs if output.path is not None]
    for path in named:
        if sum(_same(path, other) for other in named) > 1:
            raise OutputError(f"{path}: two formats would write this file: give each its own path")
    if sum(output.path is None for output in outputs) > 1:
        raise OutputError("two formats would go to standard output: give one of them a path")
    return outputs


def _default_path(
    kind: str, inputs: Sequence[Path], folder: Path | None, endings: dict[str, str]
) -> Path:
    if folder is None and len(inputs) == 1:
        return Path(stem(inputs[0].name) + (_BESIDE.get(kind) or f".moe{endings[kind]}"))
    return (folder or Path()) / (_IN_FOLDER.get(kind) or f"trace{endings[kind]}")


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


def write(path: Path, data: bytes | str, *, force: bool = False) -> None:
    """Writes `data` whole or not at all; text as UTF-8, line ends as they are. Folders are made.

    Without `force` an existing file is left alone even if it appeared a moment ago. Raises
    OutputError.
    """
    content = data.encode() if isinstance(data, str) else data
    _refuse_existing(path, force)
    try:
        if _is_special(path):
            path.write_bytes(content)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, content, force)
    except FileExistsError:
        raise OutputError(f"{path}: exists already: give --force to replace it") from None
    except OSError as error:
        raise OutputError(f"{path}: can't be written ({error.strerror}): check it") from None


def _replace(path: Path, content: bytes, force: bool) -> None:
    temporary = path.with_name(f".{path.name[:100]}.{os.getpid()}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)
    try:
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if force:
            temporary.replace(path)
        else:
            _link(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


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
