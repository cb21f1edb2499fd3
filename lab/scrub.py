"""Take host, user, paths, environment and command line out of a capture: scrub.py IN OUT.

Reads a PyTorch profiler JSON (plain or .gz) or an Nsight Systems SQLite export, and writes the
same format to OUT (JSON compressed where OUT ends in .gz). Times, names of kernels and ranges,
shapes, process groups and NCCL payloads stay as they are. Exits 1, leaving no OUT, if a value
that was to go is still found in the result.
"""

import argparse
import gzip
import json
import re
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

SCRUBBED = "scrubbed"
# At least two parts, so that a division sign in a kernel's or range's name is no path.
ABSOLUTE_PATH = re.compile(r"(?<![\w.:/])(?:~|/[\w.+@%~-]+)/[\w.+@%~/-]*")
# Upper-case NAME=value, also in lists; a template argument such as `T=float` has no underscore.
ASSIGNMENT = re.compile(r"\b[A-Z][A-Z0-9]*_[A-Z0-9_]+=[^;\s]*")
KEPT_JSON_KEYS = frozenset(
    {
        "schemaVersion", "deviceProperties", "record_shapes", "profile_memory", "with_stack",
        "with_flops", "with_modules", "distributedInfo", "cuda_driver_version",
        "cuda_runtime_version", "cupti_version", "hip_driver_version", "hip_runtime_version",
        "displayTimeUnit", "baseTimeNanoseconds", "traceEvents",
    }
)  # fmt: skip
KEPT_SYSTEM_FACTS = frozenset(
    {
        "CpuCores", "CpuArchitecture", "CpuDescription", "CudaDriverVersion", "NvDriverVersion",
        "OsDescription", "HardwarePlatform", "SoftwarePlatform",
    }
)  # fmt: skip
PRIVATE_CAPTURE_FACTS = re.compile(
    r"COMMAND|ARGUMENT|WORKING_DIR|USER_NAME|ENV|DISPLAY_NAME|PATH|FILE|HOST|OUTPUT", re.IGNORECASE
)
PRIVATE_EXPORT_FACTS = re.compile(r"HOST|USER|PATH|FILE")
COMMON_WORDS = frozenset({"root", "user", "python", "localhost", "torchrun", "true", "false"})
SHORTEST_SECRET = 6  # shorter values occur by chance; they go from where they stood all the same


class ScrubError(Exception):
    """The capture cannot be scrubbed; the message says why."""


def clean(text: str) -> str:
    """Replace absolute paths and environment assignments inside one string."""
    if "/" in text or "~" in text:
        text = ABSOLUTE_PATH.sub(f"/{SCRUBBED}", text)
    if "=" in text:
        text = ASSIGNMENT.sub(SCRUBBED, text)
    return text


def is_secret(value: str) -> bool:
    """Tell whether a removed value is distinctive enough to look for in the result."""
    return (
        len(value) >= SHORTEST_SECRET
        and value.lower() not in COMMON_WORDS
        and not value.startswith("-")
        and not value.replace(".", "").isdigit()
    )


def values_of(name: str, value: str) -> set[str]:
    """Private values inside one fact: each variable's own, where it is a list of assignments."""
    if "ENV" not in name.upper():
        return {value}
    return {part.partition("=")[2].strip('"') for part in value.split(";")}


def clean_json(value: Any) -> Any:
    """Clean every string of a JSON value, keys included, in new containers."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        return [clean_json(item) for item in value]
    if isinstance(value, dict):
        return {clean(key): clean_json(item) for key, item in value.items()}
    return value


def scrub_kineto(source: Path, target: Path) -> set[str]:
    """Scrub a profiler JSON; return the removed values to look for."""
    opened = gzip.open if source.suffix == ".gz" else open
    with opened(source, "rt", encoding="utf-8") as file:
        trace = json.load(file)
    if not isinstance(trace, dict) or "traceEvents" not in trace:
        raise ScrubError(f"{source.name}: no traceEvents, so no profiler trace")
    name = str(trace.get("traceName", ""))
    out = {key: clean_json(trace[key]) for key in trace if key in KEPT_JSON_KEYS}
    out["traceName"] = "trace.json"
    written = json.dumps(out, separators=(",", ":")).encode()
    if target.suffix == ".gz":
        # No name and no time in the header: the same trace gives the same file.
        written = gzip.compress(written, compresslevel=6, mtime=0)
    target.write_bytes(written)
    return {part for part in (name, str(Path(name).parent)) if is_secret(part)}


def tables(db: sqlite3.Connection) -> dict[str, list[str]]:
    """Columns of every table, by table."""
    names = [row[0] for row in db.execute("select name from sqlite_master where type = 'table'")]
    return {name: [row[1] for row in db.execute(f'pragma table_info("{name}")')] for name in names}


def scrub_nsys(source: Path, target: Path) -> set[str]:
    """Scrub an nsys export; return the removed values to look for."""
    shutil.copyfile(source, target)
    target.chmod(0o644)
    secrets: set[str] = set()
    # Autocommit: VACUUM, which drops the old strings from free pages, runs in no transaction.
    db = sqlite3.connect(target, isolation_level=None)
    try:
        columns = tables(db)
        if "StringIds" not in columns:
            raise ScrubError(f"{source.name}: no table StringIds, so no nsys export")
        db.execute("begin")
        for table, private in (
            ("META_DATA_CAPTURE", lambda name: PRIVATE_CAPTURE_FACTS.search(name)),
            ("META_DATA_EXPORT", lambda name: PRIVATE_EXPORT_FACTS.search(name)),
            ("TARGET_INFO_SYSTEM_ENV", lambda name: name not in KEPT_SYSTEM_FACTS),
        ):
            if table not in columns:
                continue
            for row, name, value in db.execute(
                f"select rowid, name, value from {table}"  # noqa: S608 - names from above
            ).fetchall():
                if private(name):
                    secrets.update(values_of(name, str(value)))
                    db.execute(
                        f"update {table} set value = ? where rowid = ?",  # noqa: S608
                        (SCRUBBED, row),
                    )
        if "uuid" in columns.get("TARGET_INFO_GPU", []):
            db.execute("update TARGET_INFO_GPU set uuid = id")
        # Output of the program and files of the profiler, kept as text.
        for table in ("ANALYSIS_FILE", "PROCESS_STREAMS"):
            if table in columns:
                db.execute(f"delete from {table}")  # noqa: S608 - names from above
        # Names of other programs and their threads say what else ran on the machine.
        if {"ThreadNames", "PROCESSES"} <= columns.keys():
            traced = " union ".join(
                f"select {column} & ~0xffffff from {table}"  # noqa: S608 - names from here
                for table, column in (
                    ("CUPTI_ACTIVITY_KIND_KERNEL", "globalPid"),
                    ("CUPTI_ACTIVITY_KIND_RUNTIME", "globalTid"),
                    ("NVTX_EVENTS", "globalTid"),
                )
                if column in columns.get(table, [])
            )
            others = f"not in ({traced or 'select 0'})"
            db.execute(f"delete from ThreadNames where (globalTid & ~0xffffff) {others}")  # noqa: S608
            db.execute(
                f"update PROCESSES set name = ? where (globalPid & ~0xffffff) {others}",  # noqa: S608
                (SCRUBBED,),
            )
        db.create_function("clean", 1, lambda x: clean(x) if isinstance(x, str) else x)
        for table, names in columns.items():
            if table.startswith(("ENUM_", "sqlite_")):
                continue
            for column in names:
                db.execute(
                    f'update "{table}" set "{column}" = clean("{column}") '  # noqa: S608
                    f"where typeof(\"{column}\") = 'text' and (\"{column}\" like '%/%' "
                    f"or \"{column}\" like '%=%' or \"{column}\" like '%~%')"
                )
        forget_strings(db, columns)
        db.execute("commit")
        db.execute("vacuum")
    finally:
        db.close()
    return {value for value in secrets if is_secret(value)}


def forget_strings(db: sqlite3.Connection, columns: dict[str, list[str]]) -> None:
    """Blank the strings that no row refers to: programs and arguments of the whole machine."""
    used = "union ".join(
        f'select "{column}" from "{table}" where "{column}" is not null '  # noqa: S608 - names from the file's own schema
        for table, names in columns.items()
        for column in names
        if column.endswith(("Name", "nameId", "textId", "TextId", "NameId")) or column == "name"
        if table != "StringIds" and not table.startswith(("ENUM_", "META_", "TARGET_INFO_S"))
    )
    if used:
        db.execute(f"update StringIds set value = '' where id not in ({used})")  # noqa: S608


def leaks(target: Path, secrets: set[str]) -> list[str]:
    """Values of `secrets` whose bytes are still in the file."""
    data = target.read_bytes()
    if target.suffix == ".gz":
        data = gzip.decompress(data)
    return sorted(
        secret
        for secret in secrets
        if re.search(rb"(?<![\w-])" + re.escape(secret.encode()) + rb"(?![\w-])", data)
    )


def scrub(source: Path, target: Path) -> None:
    """Scrub one capture into `target`.

    Raises ScrubError where the input is no capture or a removed value is still in the result.
    """
    with source.open("rb") as file:
        is_sqlite = file.read(16).startswith(b"SQLite format 3")
    try:
        secrets = (scrub_nsys if is_sqlite else scrub_kineto)(source, target)
        left = leaks(target, secrets)
        if left:
            raise ScrubError(f"{source.name}: still in the result: {', '.join(left)}")
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    args = parser.parse_args(arguments)
    if args.source.resolve() == args.target.resolve():
        print("scrub: IN and OUT are the same file", file=sys.stderr)
        return 1
    try:
        scrub(args.source, args.target)
    except (ScrubError, OSError, sqlite3.Error, json.JSONDecodeError) as error:
        print(f"scrub: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
