"""Reads the SQLite export of a Nsight Systems report."""

from dataclasses import replace
from pathlib import Path

from moe_advisor.errors import InputError
from moe_advisor.ingest.nsys_build import build
from moe_advisor.ingest.nsys_tables import KNOWN_TABLES
from moe_advisor.ingest.sqlite_file import is_sqlite
from moe_advisor.ingest.sqlite_reader import open_sqlite
from moe_advisor.model import CaptureIssue, LoadedInput, Severity
from moe_advisor.privacy import display_name

FORMAT = "nsys-sqlite"


def sniff(path: Path) -> bool:
    """Whether `path` is a SQLite file that looks like a Nsight Systems export."""
    if not path.is_file() or not is_sqlite(path):
        return False
    try:
        with open_sqlite(path) as source:
            return bool(source.tables() & KNOWN_TABLES)
    except InputError:
        return False


def load(path: Path, *, shown_as: str | None = None, format_name: str = FORMAT) -> LoadedInput:
    """The ranks in the export at `path`. Raises InputError when nothing can be read."""
    name = shown_as or display_name(path)
    with open_sqlite(path) as source:
        if not source.tables() & KNOWN_TABLES:
            raise InputError(
                f"{name}: a SQLite file, but not a Nsight Systems export; give the file that"
                " nsys export -t sqlite wrote"
            )
        loaded = build(source, name, format_name)
        if not source.missing_bytes:
            return loaded
        issue = CaptureIssue(
            "truncated-file",
            Severity.ERROR,
            f"the file is {source.missing_bytes} bytes shorter than its header says, so rows are"
            " missing; copy or export it again",
        )
        return replace(loaded, issues=(issue, *loaded.issues))
