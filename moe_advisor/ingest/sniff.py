"""Recognises an input by what is in it, whatever its name."""

import re
import stat
from functools import lru_cache
from pathlib import Path

from moe_advisor.errors import InputError
from moe_advisor.privacy import display_name

HEAD_BYTES = 1 << 16  # enough for any trace with its metadata in the usual place
SEARCH_LIMIT_BYTES = 64 << 20  # how far into a JSON object its kind is looked for
KERNEL_TABLE = "CUPTI_ACTIVITY_KIND_KERNEL"

SQLITE_MAGIC = b"SQLite format 3\x00"
REPORT_MAGIC = b"NVIDIA Tegra Profiler Report "
STREAM_MAGIC = b"NVIDIA Nsight Systems Stream "  # .qdstrm: raw data that is not a report yet
GZIP_MAGIC = b"\x1f\x8b"
_OTHERS = (
    (b"PK\x03\x04", "a zip archive"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"PAR1", "a single parquet file; give the folder of the parquet export"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"ARROW1", "an Arrow file"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF file"),
    (b"<", "an HTML or XML file"),
)
ACCEPTED = (
    "accepted are Nsight Systems exports (.sqlite, .nsys-rep, a parquet folder), torch profiler "
    "traces (.json, .json.gz) and moe-advisor results"
)

_HEAD_KEYS = re.compile(
    rb'"(?:traceEvents|deviceProperties|distributedInfo|baseTimeNanoseconds|cupti_version'
    rb'|displayTimeUnit|record_shapes|profile_memory|with_stack|traceName)"\s*:'
)
_EVENT_KEYS = re.compile(rb'"ph"\s*:\s*"')

_NSYS_TABLES = (
    "StringIds",
    "META_DATA_EXPORT",
    "EXPORT_META_DATA",
    "NVTX_EVENTS",
    "TARGET_INFO_SESSION_START_TIME",
)
_RESULT = re.compile(rb'"schema"\s*:\s*"moe-advisor/result"')


def detect(path: Path) -> str:
    """The format of `path`: nsys-sqlite, nsys-rep, nsys-parquet, kineto or result.

    Raises InputError that says what was found and what is accepted.
    """
    name = display_name(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            if is_parquet_folder(path):
                return "nsys-parquet"
            raise InputError(f"{name}: a folder without a parquet export; {ACCEPTED}")
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{name}: not a regular file; save the trace to a file first")
    except OSError as error:
        raise InputError(f"{name}: can't be read: {_reason(error)}") from error
    except ValueError as error:  # a name with a zero byte
        raise InputError(f"{name}: not a file name") from error
    written = (status.st_mtime_ns, status.st_ctime_ns)
    return _detected(path, status.st_dev, status.st_ino, status.st_size, *written)


@lru_cache(1 << 14)
def _detected(path: Path, *unchanged: int) -> str:
    """The format of a regular file, looked at once as long as it is `unchanged`.

    Folders of a thousand ranks are asked for three times in a run, 2 ms a file.
    """
    del unchanged
    name = display_name(path)
    try:
        with path.open("rb") as stream:
            head = stream.read(HEAD_BYTES)
    except OSError as error:
        raise InputError(f"{name}: can't be read: {_reason(error)}") from error
    if not head:
        raise InputError(f"{name}: the file is empty")
    if head.startswith(SQLITE_MAGIC):
        return _sqlite(path, name)
    if head.startswith(REPORT_MAGIC):
        return "nsys-rep"
    if STREAM_MAGIC in head[:64]:
        raise InputError(
            f"{name}: raw Nsight Systems data (.qdstrm), not a report; convert it with "
            f"QdstrmImporter -i first"
        )
    packed = head.startswith(GZIP_MAGIC)
    for magic, what in _OTHERS:
        if head.startswith(magic):
            raise InputError(f"{name}: {what}; {ACCEPTED}")
    found = _json(path, packed)
    if found is None:
        what = "gzip data that holds no trace" if packed else _describe(head)
        raise InputError(f"{name}: {what}; {ACCEPTED}")
    return found


def is_parquet_folder(path: Path) -> bool:
    """Whether `path` is the folder of a parquet export."""
    try:
        if (path / f"{KERNEL_TABLE}.parquet").is_file():
            return True
        return path.name.endswith("_pqtdir") and any(path.glob("*.parquet"))
    except OSError:
        return False


def _reason(error: OSError) -> str:
    return error.strerror or type(error).__name__


def _sqlite(path: Path, name: str) -> str:
    from moe_advisor.ingest.sqlite_file import SqliteFile

    # The reader's way of opening: it alone never leaves a file beside a database with a log.
    with SqliteFile(path) as source:
        tables = source.tables()
    if tables & frozenset(_NSYS_TABLES) or any(
        table.startswith("CUPTI_ACTIVITY_KIND_") for table in tables
    ):
        return "nsys-sqlite"
    raise InputError(f"{name}: a SQLite database, but not an Nsight Systems export; {ACCEPTED}")


def _describe(head: bytes) -> str:
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if text.startswith((b"{", b"[")):
        return "JSON, but no trace and no result"
    if b"\x00" in head:
        return "binary data of an unknown kind"
    return "text that is not JSON"


def _is_trace(head: bytes) -> bool:
    """Whether `head`, the first kilobytes of a file once unpacked, begin a Chrome trace."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return _HEAD_KEYS.search(text) is not None
    return text.startswith(b"[") and _EVENT_KEYS.search(text) is not None


def _json(path: Path, packed: bool) -> str | None:
    """Kineto or result; looks further into the file where its beginning does not tell."""
    from moe_advisor.ingest.json_stream import head_chunks

    text = b""
    wanted = HEAD_BYTES
    try:
        for chunk in head_chunks(path, packed=packed):
            text += chunk
            if len(text) < wanted:
                continue
            if (found := _json_kind(text)) is not None:
                return found
            if text.lstrip()[:1] != b"{" or len(text) > SEARCH_LIMIT_BYTES:
                return None
            wanted = 4 * len(text)
    except (OSError, InputError):
        pass
    return _json_kind(text)


def _json_kind(text: bytes) -> str | None:
    if text.lstrip().startswith(b"{") and _RESULT.search(text):
        return "result"
    return "kineto" if _is_trace(text) else None
