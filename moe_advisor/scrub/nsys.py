"""Scrubs a Nsight Systems SQLite export: writes a new database of known tables and columns.

A new file holds nothing of the old one's free pages, indexes, views or unknown tables. Numbers of
known columns stay; text stays only where it is a name of work, cleaned, or on the allow-list of
`privacy`.
"""

import re
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path

from moe_advisor.errors import InputError
from moe_advisor.ingest.nsys_tables import KNOWN_TABLES
from moe_advisor.ingest.sqlite_file import quoted
from moe_advisor.ingest.sqlite_reader import open_sqlite
from moe_advisor.privacy import allowed_environment, display_name, gpu_name, shareable_fact
from moe_advisor.scrub.report import Report, Tally
from moe_advisor.scrub.words import Cleaner, distinctive
from moe_advisor.table_source import TEXT_LIMIT_BYTES

_ACTIVITY = (
    "start end deviceId contextId greenContextId streamId correlationId globalPid graphNodeId "
    "graphId graphExecId "
)
_MARKER = "deviceId contextId greenContextId streamId correlationId globalPid eventId eventSyncId "
NUMERIC_COLUMNS: Mapping[str, str] = {
    "CUPTI_ACTIVITY_KIND_KERNEL": _ACTIVITY
    + "demangledName shortName mangledName launchType cacheConfig registersPerThread gridX gridY "
    "gridZ blockX blockY blockZ clusterX clusterY clusterZ staticSharedMemory dynamicSharedMemory "
    "localMemoryPerThread localMemoryTotal gridId sharedMemoryExecuted sharedMemoryLimitConfig",
    "CUPTI_ACTIVITY_KIND_MEMCPY": _ACTIVITY
    + "bytes copyKind deprecatedSrcId srcKind dstKind srcDeviceId srcContextId dstDeviceId "
    "dstContextId migrationCause copyCount",
    "CUPTI_ACTIVITY_KIND_MEMSET": _ACTIVITY + "value bytes memKind",
    "CUPTI_ACTIVITY_KIND_GRAPH_TRACE": _ACTIVITY,
    "CUPTI_ACTIVITY_KIND_RUNTIME": "start end eventClass globalTid correlationId nameId "
    "returnValue",
    "CUPTI_ACTIVITY_KIND_SYNCHRONIZATION": "start end syncType deprecatedSyncType " + _MARKER,
    "CUPTI_ACTIVITY_KIND_CUDA_EVENT": _MARKER,
    "NVTX_EVENTS": "start end eventType rangeId category color globalTid endGlobalTid textId "
    "domainId",
    "NVTX_PAYLOAD_SCHEMAS": "domainId schemaId type flags numEntries payloadSize alignTo",
    "NVTX_PAYLOAD_SCHEMA_ENTRIES": "domainId schemaId idx flags type arrayOrUnionDetail offset",
    "PROFILER_OVERHEAD": "start end globalTid returnValue nameId",
    "CUDA_GPU_MEMORY_USAGE_EVENTS": "start globalPid deviceId contextId bytes memKind "
    "memoryOperationType correlationId streamId localMemoryPoolReleaseThreshold "
    "localMemoryPoolSize localMemoryPoolUtilizedSize",
    "DIAGNOSTIC_EVENT": "timestamp timestampType source severity globalPid",
    "TARGET_INFO_GPU": "vmId id isDiscrete l2CacheSize totalMemory memoryBandwidth clockRate "
    "smCount cuDevice revision constantMemory maxIPC maxRegistersPerBlock maxShmemPerBlock "
    "maxShmemPerBlockOptin maxShmemPerSm maxRegistersPerSm threadsPerWarp asyncEngines "
    "maxWarpsPerSm maxBlocksPerSm maxThreadsPerBlock computeMajor computeMinor smMajor smMinor",
    "TARGET_INFO_CUDA_DEVICE": "gpuId cudaId pid",
    "TARGET_INFO_CUDA_CONTEXT_INFO": "nullStreamId hwId vmId processId deviceId contextId "
    "parentContextId isGreenContext",
    "TARGET_INFO_CUDA_STREAM": "streamId hwId vmId processId contextId priority flag",
    "TARGET_INFO_SESSION_START_TIME": "utcEpochNs",
    "ANALYSIS_DETAILS": "globalVid duration startTime stopTime",
    "ENUM_CUDA_MEMCPY_OPER": "id",
    "ENUM_CUDA_MEM_KIND": "id",
    "StringIds": "id",
    "META_DATA_EXPORT": "",
    "EXPORT_META_DATA": "",
    "META_DATA_CAPTURE": "",
    "TARGET_INFO_SYSTEM_ENV": "",
}
"""Table -> its columns that are numbers and stay."""

_TEXT_COLUMNS: Mapping[str, Mapping[str, str]] = {
    "StringIds": {"value": "scrub_string(id, {})"},
    "NVTX_EVENTS": {"text": "scrub_name({})", "binaryData": "scrub_payload({})"},
    "NVTX_PAYLOAD_SCHEMA_ENTRIES": {"name": "scrub_field({})"},
    "TARGET_INFO_GPU": {"name": "scrub_gpu({})"},
    "ENUM_CUDA_MEMCPY_OPER": {"name": "scrub_constant({})"},
    "ENUM_CUDA_MEM_KIND": {"name": "scrub_constant({})"},
}
"""Table -> column -> the expression that cleans its text."""

_FACTS = ("META_DATA_EXPORT", "EXPORT_META_DATA", "META_DATA_CAPTURE", "TARGET_INFO_SYSTEM_ENV")
_NAME_COLUMNS = (
    ("CUPTI_ACTIVITY_KIND_KERNEL", ("demangledName", "shortName", "mangledName")),
    ("CUPTI_ACTIVITY_KIND_RUNTIME", ("nameId",)),
    ("NVTX_EVENTS", ("textId",)),
    ("PROFILER_OVERHEAD", ("nameId",)),
)
_PRIVATE_FACT = re.compile(r"HOST|USER|PATH|DIR|DISPLAY_NAME|HOME|COMMAND", re.IGNORECASE)
_NAMED_FACT = re.compile(r"HOST|USER|DISPLAY_NAME|EMAIL|TOKEN|KEY|SECRET|PASS", re.IGNORECASE)
_CONSTANT = re.compile(
    r"CUDA_MEMCPY_(?:KIND|OPER)_[A-Z]{1,8}|CUDA_MEMOPR_MEMORY_KIND_[A-Z_]{1,16}|"
    r"(?:UNKNOWN|HTOD|DTOH|HTOA|ATOH|ATOA|ATOD|DTOA|DTOD|HTOH|PTOP|UVM_HTOD|UVM_DTOH|UVM_DTOD|"
    r"PAGEABLE|PINNED|DEVICE|ARRAY|MANAGED|DEVICE_STATIC|MANAGED_STATIC)"
)
_PAYLOAD_LIMIT_BYTES = 256
_DEADLINE_S = 3600.0
_LOOK_EVERY = 1_000_000  # of SQLite's instructions: some milliseconds


def scrub(source: Path, target: Path) -> Report:
    """Writes a scrubbed copy of the export at `source` to `target`, which must not exist.

    Raises InputError where `source` is no export or is too damaged to be read to its end.
    """
    name = display_name(source)
    tally = Tally()
    with open_sqlite(source) as tables:
        if not tables.tables() & KNOWN_TABLES:
            raise InputError(
                f"{name}: a SQLite file, but not a Nsight Systems export; give the file that"
                " nsys export -t sqlite wrote"
            )
        if tables.missing_bytes:
            raise InputError(
                f"{name}: {tables.missing_bytes} bytes shorter than its header says: copy or"
                " export it again"
            )
        columns = {table: tables.columns(table) for table in tables.tables()}
        with closing(sqlite3.connect(target, isolation_level=None, uri=True)) as database:
            try:
                kept = _copy(database, tables.uri, tables.most_rows, columns, tally)
            except (sqlite3.Error, OverflowError) as error:
                raise InputError(
                    f"{name}: can't be read to its end ({_reason(error)}): export it again"
                ) from None
    return Report("nsys-sqlite", kept, tally.removed())


def _reason(error: Exception) -> str:
    return re.sub(r"\S*/\S*", "…", str(error))[:120]


def _copy(
    database: sqlite3.Connection,
    uri: str,
    most_rows: int,
    columns: Mapping[str, frozenset[str]],
    tally: Tally,
) -> int:
    until = time.monotonic() + _DEADLINE_S
    database.set_progress_handler(lambda: time.monotonic() > until, _LOOK_EVERY)
    for pragma in ("trusted_schema=OFF", "cell_size_check=ON", "journal_mode=OFF", "mmap_size=0"):
        database.execute(f"PRAGMA {pragma}")
    database.execute("ATTACH DATABASE ? AS src", (uri,))
    # Text cells may hold bytes that are no UTF-8.
    database.text_factory = lambda data: data.decode("utf-8", "replace")
    facts = {table: list(_facts(database, table, columns)) for table in _FACTS}
    cleaner = Cleaner(_private(facts), tally)
    used = _used_strings(database, columns)
    _functions(database, cleaner, used, tally)
    database.execute("BEGIN")
    kept = 0
    for table in sorted(columns):
        if table not in NUMERIC_COLUMNS:
            count = database.execute(
                f"SELECT count(*) FROM (SELECT 1 FROM src.{quoted(table)} LIMIT ?)",  # noqa: S608
                (most_rows,),
            ).fetchone()[0]
            tally.add(f"rows of {table if table in _DROPPED else 'other tables'}", count)
            continue
        if table in _FACTS:
            kept += _write_facts(database, table, facts[table], tally)
            continue
        kept += _copy_table(database, table, columns[table], most_rows, tally)
    database.execute("COMMIT")
    database.execute("DETACH DATABASE src")
    return kept


_DROPPED = frozenset(
    {
        "ANALYSIS_FILE", "ProcessStreams", "PROCESS_STREAMS", "PROCESSES", "ThreadNames",
        "NVTX_PAYLOAD_ENUMS", "NVTX_PAYLOAD_ENUM_ENTRIES", "SCHED_EVENTS", "COMPOSITE_EVENTS",
        "OSRT_API", "OSRT_CALLCHAINS", "CUDA_CALLCHAINS", "SAMPLING_CALLCHAINS", "GENERIC_EVENTS",
        "GENERIC_EVENT_TYPES", "TARGET_INFO_NIC_INFO", "TARGET_INFO_NETWORK_METRICS",
        "GPU_METRICS", "NET_NIC_METRIC", "NET_IB_DEVICE_INFO", "DEVICE_ENV",
    }
)  # fmt: skip
"""Tables of the exporter whose names may be told when they are dropped."""


def _copy_table(
    database: sqlite3.Connection,
    table: str,
    present: frozenset[str],
    most_rows: int,
    tally: Tally,
) -> int:
    numeric = [one for one in NUMERIC_COLUMNS[table].split() if one in present]
    texts = {one: how for one, how in _TEXT_COLUMNS.get(table, {}).items() if one in present}
    tally.add("columns that no analysis reads", len(present) - len(numeric) - len(texts))
    if not numeric:
        return 0
    types = [f"{quoted(one)} INTEGER" for one in numeric] + [f"{quoted(one)} TEXT" for one in texts]
    if table == "StringIds":
        types[0] += " PRIMARY KEY"
    database.execute(f"CREATE TABLE main.{quoted(table)} ({', '.join(types)})")
    cells = [
        f"CASE WHEN typeof({quoted(one)}) IN ('integer', 'real') THEN {quoted(one)} END"
        for one in numeric
    ] + [how.format(quoted(one)) for one, how in texts.items()]
    # `or ignore`: a string id given twice keeps its first value, as for the reader.
    done = database.execute(
        f"INSERT OR IGNORE INTO main.{quoted(table)} "  # noqa: S608 - quoted, from the list above
        f"SELECT {', '.join(cells)} FROM src.{quoted(table)} LIMIT {most_rows + 1}"
    )
    if done.rowcount > most_rows:
        raise sqlite3.DatabaseError("more rows than the file can hold")
    return done.rowcount


def _functions(
    database: sqlite3.Connection, cleaner: Cleaner, used: set[int], tally: Tally
) -> None:
    def name(value: object) -> str | None:
        return cleaner.clean(value[:TEXT_LIMIT_BYTES]) if isinstance(value, str) else None

    def string(number: object, value: object) -> str | None:
        if number in used:
            return name(value)
        tally.add("strings that no kernel, call or range refers to")
        return None

    def payload(value: object) -> bytes | None:
        # NCCL's payloads are four numbers of header and some fields; text can't hide in the rest.
        fits = isinstance(value, bytes) and len(value) <= _PAYLOAD_LIMIT_BYTES and _is_nccl(value)
        if value is not None and not fits:
            tally.add("payloads of ranges that are not NCCL's")
        return value if fits else None  # type: ignore[return-value]

    def field(value: object) -> str | None:
        from moe_advisor.ingest.nccl_nvtx import PAYLOAD_FIELDS

        fits = isinstance(value, str) and value.strip().lower() in PAYLOAD_FIELDS
        return value if fits else None  # type: ignore[return-value]

    def gpu(value: object) -> str | None:
        return gpu_name(value) if isinstance(value, str) else None

    def constant(value: object) -> str | None:
        return value if isinstance(value, str) and _CONSTANT.fullmatch(value) else None

    for called, function, arguments in (
        ("scrub_name", name, 1),
        ("scrub_string", string, 2),
        ("scrub_payload", payload, 1),
        ("scrub_field", field, 1),
        ("scrub_gpu", gpu, 1),
        ("scrub_constant", constant, 1),
    ):
        database.create_function(called, arguments, function)


def _is_nccl(payload: bytes) -> bool:
    from moe_advisor.ingest.nccl_nvtx import NCCL_SCHEMA_BASE

    if len(payload) < 40:  # header and one field
        return False
    schema = int.from_bytes(payload[8:16], "little") - NCCL_SCHEMA_BASE
    return 0 <= schema < 1000


def _used_strings(database: sqlite3.Connection, columns: Mapping[str, frozenset[str]]) -> set[int]:
    used: set[int] = set()
    for table, names in _NAME_COLUMNS:
        for one in names:
            if one in columns.get(table, ()):
                rows = database.execute(
                    f"SELECT DISTINCT {quoted(one)} FROM src.{quoted(table)}"  # noqa: S608
                )
                used.update(row[0] for row in rows if isinstance(row[0], int))
    return used


# --- facts about capture, export and machine --------------------------------------------------


def _facts(
    database: sqlite3.Connection, table: str, columns: Mapping[str, frozenset[str]]
) -> Iterator[tuple[str, str]]:
    if not {"name", "value"} <= columns.get(table, frozenset()):
        return
    rows = database.execute(f"SELECT name, value FROM src.{quoted(table)}")  # noqa: S608
    for name, value in rows:
        if isinstance(name, str) and value is not None:
            yield name, str(value)


def _write_facts(
    database: sqlite3.Connection, table: str, facts: list[tuple[str, str]], tally: Tally
) -> int:
    kept = []
    for name, value in facts:
        if name.endswith(":ENVIRONMENT_VARIABLE"):
            variable, _, setting = value.partition("=")
            allowed = allowed_environment([(variable, setting)])
            text = "".join(f'{key}="{one}"' for key, one in allowed.items())
            shared: str | None = text or None
        else:
            shared = shareable_fact(table, name, value)
        if shared is None:
            tally.add("facts about capture, export and machine (host, user, paths, environment)")
        else:
            kept.append(
                (name if not name.endswith(":ENVIRONMENT_VARIABLE") else _process(name), shared)
            )
    database.execute(f"CREATE TABLE main.{quoted(table)} (name TEXT, value TEXT)")
    database.executemany(f"INSERT INTO main.{quoted(table)} VALUES (?, ?)", kept)  # noqa: S608
    return len(kept)


def _process(name: str) -> str:
    found = re.match(r"PROCESS_(\d{1,3}):", name)
    return f"PROCESS_{found[1] if found else 0}:ENVIRONMENT_VARIABLE"


def _private(facts: Mapping[str, list[tuple[str, str]]]) -> Iterator[str]:
    """Values of this file that must not be found in names either."""
    for rows in facts.values():
        for name, value in rows:
            if "ENV" in name.upper() and "=" in value:
                for part in value.split(";"):
                    key, _, setting = part.partition("=")
                    yield from _values(setting.strip("\"' "), named=bool(_NAMED_FACT.search(key)))
            elif _PRIVATE_FACT.search(name) or _NAMED_FACT.search(name) or "ARGUMENT" in name:
                yield from _values(value, named=bool(_NAMED_FACT.search(name)))


def _values(value: str, *, named: bool) -> Iterator[str]:
    found = [value, *re.split(r"[/\\]", value)]
    if named:
        found += [value.split(".")[0]]
    with suppress(ValueError):
        found.remove("")
    yield from (one for one in found if distinctive(one, named=named) and len(one) < 4096)
