"""The history file: one SQLite database, one transaction per run added.

Write-ahead logging lets readers go on while a job writes; a writer waits for the one before it. A
job killed at any moment leaves either its whole run or nothing. SQLite's locks need a local or
properly locking file system.
"""

import hashlib
import json
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from moe_advisor.errors import ConfigError, InputError
from moe_advisor.output import json_output
from moe_advisor.privacy import display_name
from moe_advisor.result import Result

APPLICATION_ID = 0x4D4F4541
"""Marks the file as ours ("MOEA"), so that nobody else's database is written to."""

VERSION = 1
TIMEOUT_S = 30.0
"""How long a writer waits for others; one add holds the lock for milliseconds."""

MAX_RESULT_BYTES = 256 << 20
"""Largest result read back: a stored one is far smaller, a larger one is damage."""

DEFAULT_BRANCH = "main"
DEFAULT_COUNT = 20

_TEXT = re.compile(r"[\w./@:+=, -]{1,200}")
_BASELINE = re.compile(r"(?P<db>.+):(?P<branch>[^:~]+)(?:~(?P<count>\d{1,6}))?")

_TABLES = """
CREATE TABLE IF NOT EXISTS run (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  added_at TEXT NOT NULL,
  branch TEXT NOT NULL,
  commit_id TEXT NOT NULL,
  labels TEXT NOT NULL,
  name TEXT NOT NULL,
  digest TEXT NOT NULL,
  verdict TEXT NOT NULL,
  result BLOB NOT NULL,
  UNIQUE (digest, branch, commit_id, labels)
);
CREATE INDEX IF NOT EXISTS run_branch ON run (branch, id);
CREATE TABLE IF NOT EXISTS metric (
  run_id INTEGER NOT NULL REFERENCES run (id) ON DELETE CASCADE,
  name TEXT NOT NULL,
  status TEXT NOT NULL,
  value REAL,
  low REAL,
  high REAL,
  spread REAL,
  unit TEXT NOT NULL,
  PRIMARY KEY (run_id, name)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One run of the history with its whole result, without the timeline."""

    number: int
    added_at: str
    branch: str
    commit: str
    labels: Mapping[str, str]
    name: str
    digest: str
    result: Result


def add(
    path: Path,
    result: Result,
    *,
    branch: str = DEFAULT_BRANCH,
    commit: str = "",
    labels: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
) -> tuple[int, bool]:
    """The run's number, and whether it is new: the same result, commit and labels add once.

    Raises ConfigError for a label that can't be stored, InputError for a file that can't be used.
    """
    from moe_advisor.output import run_view

    for what, text in (
        ("branch", branch),
        *((("commit", commit),) if commit else ()),
        *((f"label {key}", f"{key}={value}") for key, value in (labels or {}).items()),
    ):
        if not _TEXT.fullmatch(text):
            raise ConfigError(f"{what} {text[:40]!r}: use up to 200 letters, digits and ./@:+=-_")
    bare = msgspec.structs.replace(result, timeline=None)
    data = json_output.encode(bare)
    digest = hashlib.sha256(data).hexdigest()
    packed = json.dumps(dict(labels or {}), sort_keys=True)
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    row = (now, branch, commit, packed, run_view.run_name(result), digest, result.walls.verdict)
    metrics = [
        (name, one.status, one.value, one.low, one.high, one.spread, one.unit)
        for name, one in result.metrics.items()
    ]
    compressed = zlib.compress(data, 6)  # before the lock is taken
    with _open(path, timeout_s, write=True) as connection:
        connection.execute("BEGIN IMMEDIATE")
        known = connection.execute(
            "SELECT id FROM run WHERE digest=? AND branch=? AND commit_id=? AND labels=?",
            (digest, branch, commit, packed),
        ).fetchone()
        if known:
            connection.execute("ROLLBACK")
            return int(known[0]), False
        cursor = connection.execute(
            "INSERT INTO run (added_at, branch, commit_id, labels, name, digest, verdict, result)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, compressed),
        )
        number = int(cursor.lastrowid or 0)
        connection.executemany(
            "INSERT INTO metric (run_id, name, status, value, low, high, spread, unit)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [(number, *metric) for metric in metrics],
        )
        connection.execute("COMMIT")
    return number, True


def read(
    path: Path, branch: str | None = None, last: int | None = None, timeout_s: float = TIMEOUT_S
) -> list[Row]:
    """The runs of a branch (of all, without one), oldest first; only the last ones if told."""
    sql = (
        "SELECT id, added_at, branch, commit_id, labels, name, digest, result FROM run "
        "WHERE ?1 IS NULL OR branch = ?1 ORDER BY id DESC LIMIT ?2"
    )
    with _open(path, timeout_s, write=False) as connection:
        rows = connection.execute(sql, (branch, -1 if last is None else last)).fetchall()
    return [_row(path, row) for row in reversed(rows)]


def _row(path: Path, row: Sequence[object]) -> Row:
    number, added_at, branch, commit, labels, name, digest, packed = row
    try:
        unpacker = zlib.decompressobj()
        data = unpacker.decompress(packed, MAX_RESULT_BYTES)  # type: ignore[arg-type]
        if not unpacker.eof:
            raise InputError(f"{display_name(path)}: run {number} is larger than any result")
        return Row(
            number=int(str(number)),
            added_at=str(added_at),
            branch=str(branch),
            commit=str(commit),
            labels=dict(json.loads(str(labels))),
            name=str(name),
            digest=str(digest),
            result=json_output.decode(data, f"{display_name(path)}: run {number}"),
        )
    except (zlib.error, TypeError, ValueError):
        raise InputError(f"{display_name(path)}: run {number} is damaged: delete it") from None


def baseline(text: str, exclude: Sequence[Result] = ()) -> list[Row]:
    """The runs that `DB:BRANCH~N` means, without those that are `exclude` themselves.

    Raises ConfigError for another form and for a branch without runs.
    """
    match = _BASELINE.fullmatch(text)
    if not match:
        raise ConfigError(
            f"--baseline {text[:80]!r}: write FILE:BRANCH or FILE:BRANCH~N, such as "
            "history.db:main~20"
        )
    path, branch = Path(match["db"]), match["branch"]
    count = int(match["count"] or DEFAULT_COUNT)
    if not count:
        raise ConfigError(f"--baseline {text[:80]!r}: ~0 is no run")
    own = {
        hashlib.sha256(json_output.encode(msgspec.structs.replace(one, timeline=None))).hexdigest()
        for one in exclude
    }
    rows = [row for row in read(path, branch, count + len(own)) if row.digest not in own][-count:]
    if not rows:
        branches = sorted({row.branch for row in read(path)})
        known = f"it has {', '.join(branches[:10])}" if branches else "it is empty"
        if branch in branches:
            known = "only this run itself is there"
        raise ConfigError(
            f"{display_name(path)}: no earlier run of branch {branch!r} ({known}): add one first"
        )
    return rows


@contextmanager
def _open(path: Path, timeout_s: float, write: bool) -> Iterator[sqlite3.Connection]:
    """A connection in autocommit mode; every sqlite3 error becomes one line."""
    name = display_name(path)
    if path.is_dir() or (not write and not path.exists()):
        what = "is a folder" if path.is_dir() else "no such history file"
        raise InputError(f"{name}: {what}: name the SQLite file that history add writes")
    if not path.parent.is_dir():
        raise InputError(f"{name}: its folder does not exist: make it first")
    connection: sqlite3.Connection | None = None
    try:
        how = "mode=rwc" if write else _reading(path)
        uri = f"{path.resolve().as_uri()}?{how}"
        connection = sqlite3.connect(uri, timeout=timeout_s, isolation_level=None, uri=True)
        connection.execute("PRAGMA foreign_keys=ON")
        _check(connection, name, write, timeout_s)
        yield connection
    except sqlite3.Error as error:
        raise InputError(f"{name}: {_reason(error)}") from None
    finally:
        if connection is not None:
            connection.close()


def _reading(path: Path) -> str:
    """How to open a history to read it.

    Write-ahead logging keeps a file beside it even for readers. Where none can be made, as in an
    artifact mounted read-only, and no writer left any, nobody can be writing.
    """
    log = path.with_name(f"{path.name}-wal")
    if os.access(path.parent, os.W_OK) or log.exists():
        return "mode=ro"
    return "mode=ro&immutable=1"


def _check(connection: sqlite3.Connection, name: str, write: bool, timeout_s: float) -> None:
    """Makes a new file ours; refuses another program's and a newer version's."""
    application, version, tables = _head(connection)
    if application == 0 and tables == 0:
        if not write:
            raise InputError(f"{name}: holds no history yet: add a run first")
        _create(connection, timeout_s)
        application, version, tables = _head(connection)
    if application != APPLICATION_ID:
        raise InputError(f"{name}: is another program's database: name another file")
    if version > VERSION:
        raise InputError(f"{name}: written by a newer moe-advisor (version {version}): update")
    if write:
        connection.execute("PRAGMA synchronous=FULL")


def _head(connection: sqlite3.Connection) -> tuple[int, int, int]:
    return (
        int(connection.execute("PRAGMA application_id").fetchone()[0]),
        int(connection.execute("PRAGMA user_version").fetchone()[0]),
        int(connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]),
    )


def _create(connection: sqlite3.Connection, timeout_s: float) -> None:
    """The tables, all in one transaction, whoever of several jobs comes first."""
    # Switching to write-ahead logging takes an exclusive lock that the busy timeout doesn't cover.
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL").fetchone()
            break
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    connection.execute("BEGIN IMMEDIATE")
    for statement in _TABLES.split(";"):
        if statement.strip():
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version={VERSION}")
    connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
    connection.execute("COMMIT")


def _reason(error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return "another job holds it too long: try again, or give --timeout more seconds"
    if "readonly" in text or "unable to open" in text:
        return f"can't be written or opened ({text}): check the permissions of it and its folder"
    if "not a database" in text or "malformed" in text:
        return f"not a usable SQLite file ({text}): name another file"
    return f"SQLite says: {text[:200]}"
