"""Reads a Nsight Systems report (.nsys-rep) through the user's own `nsys export`."""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from moe_advisor.errors import InputError
from moe_advisor.ingest import nsys_sqlite
from moe_advisor.ingest.sqlite_file import is_sqlite
from moe_advisor.model import LoadedInput
from moe_advisor.privacy import display_name, safe_text

FORMAT = "nsys-rep"
SUFFIX = ".nsys-rep"
NSYS_VARIABLE = "NSYS"

CACHED = ("nsys-", ".sqlite")
"""How the name of an export in a cache folder begins and ends."""

TEMPORARY = "moe-advisor-"
"""How the name of a temporary folder begins."""

VERSION_TIMEOUT_S = 30
"""`nsys --version` takes well under a second."""

EXPORT_TIMEOUT_S = 3_600
"""Exports take about a second per 20 MB of report; an hour is a hang."""

# Every report begins with this and the version that wrote it, with @ for dots.
_HEAD_BYTES = 4_096
_MAGIC = b"NVIDIA Tegra Profiler Report"
_REPORT_VERSION = re.compile(rb"Profiler Report (\d{4})@(\d{1,3})@(\d{1,3})")
_TOOL_VERSION = re.compile(r"\b(\d{4})\.(\d{1,3})\.(\d{1,3})")
_OPTION_REJECTED = re.compile(
    r"unrecogni[sz]ed option|unknown option|invalid option|include-blobs", re.IGNORECASE
)
_MESSAGE_LIMIT = 160  # characters of the tool's own words, on one line


def sniff(path: Path) -> bool:
    """Whether `path` is a Nsight Systems report."""
    if not path.is_file() or is_sqlite(path):
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    # The name counts only for what isn't text, in case a later version changes its first words.
    return head.startswith(_MAGIC) or (path.name.endswith(SUFFIX) and not _is_text(head))


def _is_text(head: bytes) -> bool:
    return bool(head) and all(byte >= 32 or byte in b"\t\n\r" for byte in head)


def find_nsys(explicit: Path | None = None, environment: Mapping[str, str] = os.environ) -> Path:
    """The nsys program: `explicit`, else $NSYS, else the one on PATH. Raises InputError."""
    named = [(explicit, "--nsys"), (environment.get(NSYS_VARIABLE) or None, f"${NSYS_VARIABLE}")]
    for value, origin in named:
        if value is None:
            continue
        found = shutil.which(str(value))
        if found is None:
            raise InputError(f"{origin}: {display_name(str(value))} is not a program that can run")
        return Path(found)
    found = shutil.which("nsys", path=environment.get("PATH"))
    if found is None:
        raise InputError(
            "nsys was not found, and a .nsys-rep can only be read through it: put it on PATH, give"
            " --nsys or set $NSYS, or export on the machine that has it with"
            " nsys export -t sqlite --include-blobs=true"
        )
    return Path(found)


def load(path: Path, *, nsys: Path | None = None, cache: Path | None = None) -> LoadedInput:
    """The ranks in the report at `path`, exported to `cache` or a temporary folder.

    Raises InputError when nsys is missing, older than the report or fails.
    """
    shown = display_name(path)
    program = find_nsys(nsys)
    with _exported(path, program, cache) as export:
        loaded = nsys_sqlite.load(export, shown_as=shown, format_name=FORMAT)
    return replace(loaded, info=replace(loaded.info, name=shown, format=FORMAT))


@contextlib.contextmanager
def _exported(path: Path, program: Path, cache: Path | None) -> Iterator[Path]:
    """The SQLite export of `path`: from the cache, or made; temporary files are removed."""
    kept = _cached_path(path, program, cache) if cache is not None else None
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
    folder_of = kept.parent if kept is not None else None
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=folder_of) as folder:
        export = Path(folder) / "export.sqlite"
        # Read under a name of our own: another program that bounds the cache may remove the kept.
        if kept is None or not _linked(kept, export):
            _export(path, program, export)
            if kept is not None:
                _keep(export, kept)
        yield export


def _linked(kept: Path, export: Path) -> bool:
    """Whether a kept export lies at `export` now; it was used just now."""
    if not is_sqlite(kept):
        return False
    try:
        os.utime(kept)
        _duplicate(kept, export)
    except OSError:  # gone meanwhile
        return False
    return True


def _keep(export: Path, kept: Path) -> None:
    """Puts an export into the cache: whole or not at all, also with two programs at once."""
    named = export.with_name("kept.sqlite")
    with contextlib.suppress(OSError):  # the cache saves time, nothing else
        _duplicate(export, named)
        named.replace(kept)


def _duplicate(file: Path, other: Path) -> None:
    """The same content under a second name, copied only where the file system has no links."""
    try:
        os.link(file, other)
    except OSError:
        shutil.copyfile(file, other)


def _cached_path(path: Path, program: Path, cache: Path) -> Path:
    """A name for the export that changes with the report's content and with nsys."""
    with path.open("rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    status = program.stat()
    key = f"{content}\0{program.name}\0{status.st_size}\0{status.st_mtime_ns}"
    digest = hashlib.sha256(key.encode()).hexdigest()[:32]
    return cache / f"{CACHED[0]}{digest}{CACHED[1]}"


def _export(path: Path, program: Path, export: Path) -> None:
    """Write `export` with nsys, with payload blobs where the tool knows them."""
    with_blobs = _run(path, program, export, ["--include-blobs=true"])
    if with_blobs is None:
        return
    failure = with_blobs
    if _OPTION_REJECTED.search(with_blobs):
        without = _run(path, program, export, [])
        if without is None:
            return
        failure = without
    shown = display_name(path)
    written, tool = _report_version(path), _tool_version(program)
    if written and tool and tool < written:
        raise InputError(
            f"{shown}: written by nsys {_dotted(written)}, which nsys {_dotted(tool)} can't read;"
            " use the version that captured it, or a newer one (--nsys or $NSYS)"
        )
    raise InputError(
        f"{shown}: nsys export failed ({_last_words(failure, path, export)}); check that the file"
        " is whole, or export it where it was captured"
    )


def _report_version(path: Path) -> tuple[int, ...] | None:
    with path.open("rb") as file:
        found = _REPORT_VERSION.search(file.read(_HEAD_BYTES))
    return tuple(map(int, found.groups())) if found else None


def _tool_version(program: Path) -> tuple[int, ...] | None:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own program, without a shell
            [str(program.absolute()), "--version"],
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            timeout=VERSION_TIMEOUT_S,
        )
    except (subprocess.TimeoutExpired, OSError):
        return None
    found = _TOOL_VERSION.search(done.stdout.decode("utf-8", "replace"))
    return tuple(map(int, found.groups())) if found else None


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _run(path: Path, program: Path, export: Path, options: list[str]) -> str | None:
    """Run one export; None on success, else what the tool said."""
    # The report is given by its absolute path, so that a name such as "-x" is no option, and the
    # working folder is the temporary one, because nsys writes its own files where it stands.
    command = [
        str(program.absolute()),
        "export",
        "--type=sqlite",
        "--force-overwrite=true",
        *options,
        f"--output={export}",
        str(path.absolute()),
    ]
    environment = {**os.environ, "TMPDIR": str(export.parent)}
    try:
        done = subprocess.run(  # noqa: S603 - the user's own program, without a shell
            command,
            check=False,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd=export.parent,
            env=environment,
            timeout=EXPORT_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return f"no result within {EXPORT_TIMEOUT_S} s"
    except OSError as error:
        return error.strerror or "it could not be started"
    if done.returncode == 0 and is_sqlite(export):
        return None
    export.unlink(missing_ok=True)
    said = (done.stderr + b"\n" + done.stdout).decode("utf-8", "replace").strip()
    return said or f"exit code {done.returncode}"


def _last_words(said: str, path: Path, export: Path) -> str:
    """The tool's most telling line, without paths."""
    lines = [line.strip() for line in re.split(r"[\r\n]+", said) if line.strip()]
    telling = [line for line in lines if re.search(r"error|fail|cannot|unable", line, re.I)]
    text = (telling or lines or ["no message"])[-1]
    for folder in (export.parent, path.absolute().parent):
        text = text.replace(str(folder) + os.sep, "")
    text = re.sub(r"(?:/[^\s/'\"]+)+/", "", text)
    return safe_text(text, _MESSAGE_LIMIT)
