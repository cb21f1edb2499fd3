"""Scrubs a PyTorch profiler trace: keeps by name what an analysis needs and drops the rest."""

import gzip
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec

from moe_advisor.errors import InputError
from moe_advisor.ingest.json_stream import EventReader, StreamLimits
from moe_advisor.ingest.kineto_columns import KNOWN_CATEGORIES
from moe_advisor.ingest.kineto_events import repaired
from moe_advisor.privacy import display_name, gpu_name
from moe_advisor.scrub.report import Report, Tally
from moe_advisor.scrub.words import Cleaner, distinctive

Raw = msgspec.Raw
Event = dict[str, Raw]

_NUMBER = re.compile(rb"-?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,4})?")
_NUMBERS = re.compile(rb"[\[\]\d\s,.eE+-]{1,1000000}")
_NUMBER_TEXT = re.compile(rb'"[\[\]\d\s,.-]{0,100000}"')
_WORD = re.compile(r"[A-Za-z0-9_]{1,40}")
_VERSION = re.compile(r"\d{1,5}(?:\.\d{1,5}){0,3}")
_PHASES = frozenset({"X", "B", "E", "i", "I", "s", "t", "f"})
_SCOPES = frozenset({"t", "p", "g", "e"})
_FLOWS = frozenset({"ac2g", "async_cpu_to_gpu", "fwdbwd", "gpu_user_annotation", "cuda_sync"})
_CATEGORIES = KNOWN_CATEGORIES | _FLOWS
_IDENTIFIERS = frozenset({"pid", "tid"})
_NUMERIC_FIELDS = frozenset({"ts", "dur", "id"})
_NUMERIC_ARGS = frozenset(
    {
        "External id", "Record function id", "Ev Idx", "cbid", "correlation", "queued", "device",
        "context", "stream", "grid", "block", "bytes", "registers per thread", "shared memory",
        "blocks per SM", "warps per SM", "est. achieved occupancy %", "memory bandwidth (GB/s)",
        "Sequence number", "Fwd thread id", "graph node id", "graph id", "priority",
        "In msg nelems", "Out msg nelems", "In msg size", "Out msg size", "Group size", "Rank",
        "Global rank start", "Global rank stride", "Total Allocated", "Total Reserved", "Bytes",
        "Device Id", "Device Type", "Input Dims", "Python id", "Python parent id",
        "Python module id", "wait_on_stream", "wait_on_cuda_event_id",
        "wait_on_cuda_event_record_corr_id", "event_id", "Seq", "Src Rank", "Dst Rank",
    }
)  # fmt: skip
_NUMBER_TEXT_ARGS = frozenset({"In split size", "Out split size", "Process Group Ranks"})
_NAME_ARGS = frozenset({"Process Group Name", "Process Group Description"})
_WORD_ARGS = frozenset({"Collective name", "dtype"})
_NUMERIC_METADATA = (
    "schemaVersion", "record_shapes", "profile_memory", "with_stack", "with_flops", "with_modules",
    "cuda_driver_version", "cuda_runtime_version", "hip_driver_version", "hip_runtime_version",
    "cupti_version", "baseTimeNanoseconds",
)  # fmt: skip
_DEVICE_FIELDS = (
    "id", "totalGlobalMem", "computeMajor", "computeMinor", "maxThreadsPerBlock",
    "maxThreadsPerMultiprocessor", "regsPerBlock", "warpSize", "sharedMemPerBlock", "numSms",
    "regsPerMultiprocessor", "sharedMemPerBlockOptin", "sharedMemPerMultiprocessor",
)  # fmt: skip
_EVENTS = msgspec.json.Decoder(list[Event])


def scrub(source: Path, target: Path, limits: StreamLimits, *, packed: bool) -> Report:
    """Writes a scrubbed copy of the trace at `source` to `target`, gzipped if `packed`.

    Raises InputError where `source` is no trace.
    """
    tally = Tally()
    # What stands beside the events may follow them, so the trace is read twice.
    metadata = _metadata_of(source, limits)
    cleaner = Cleaner(_private(metadata), tally)
    kept = 0
    reader = _reader(source, limits)
    with ExitStack() as stack:
        out: BinaryIO = stack.enter_context(target.open("wb"))
        if packed:
            # No name and no time in the header: the same trace gives the same file.
            zipped = gzip.GzipFile("", "wb", 6, out, mtime=0)
            out = cast("BinaryIO", stack.enter_context(zipped))
        head = json.dumps(_kept_metadata(metadata, cleaner, tally), separators=(",", ":"))
        out.write(head[:-1].encode() + (b"," if len(head) > 2 else b"") + b'"traceEvents":[\n')
        threads: dict[bytes, bytes] = {}
        for batch in reader:
            found = [one for event in batch if (one := _kept(event, cleaner, tally, threads))]
            if found:
                out.write(b",\n" * (kept > 0) + b",\n".join(found))
                kept += len(found)
        if not reader.truncated:  # a cut trace stays cut: the copy must not look whole
            out.write(b'\n],"traceName":"trace.json"}\n')
    tally.add("damaged events", reader.bad_events)
    if not kept:
        raise InputError(f"{display_name(source)}: holds no event that an analysis would read")
    return Report("kineto", kept, tally.removed())


def _reader(source: Path, limits: StreamLimits) -> EventReader[Event]:
    return EventReader(source, _decode, _rescue, limits)


def _decode(text: bytes) -> list[Event]:
    try:
        return _EVENTS.decode(text)
    except (UnicodeError, RecursionError) as error:
        raise msgspec.DecodeError(type(error).__name__) from error


def _rescue(piece: bytes, may_drop_args: bool) -> Event | None:
    found = repaired(piece, may_drop_args)
    try:
        return None if found is None else _decode(b"[" + json.dumps(found).encode() + b"]")[0]
    except (msgspec.DecodeError, ValueError, RecursionError):
        return None


def _metadata_of(source: Path, limits: StreamLimits) -> dict[str, Any]:
    reader = EventReader(source, _Skipped(), lambda *_: None, limits)
    for _ in reader:
        pass
    return reader.metadata


class _Skipped:
    """Decodes a list of events into nothing."""

    def __init__(self) -> None:
        self._decoder = msgspec.json.Decoder(list[Raw])

    def __call__(self, text: bytes) -> list[Raw]:
        try:
            return self._decoder.decode(text)
        except (UnicodeError, RecursionError) as error:
            raise msgspec.DecodeError(type(error).__name__) from error


def _private(metadata: dict[str, Any]) -> Iterator[str]:
    """Values beside the events that must not be found in the names of events either."""
    for key, value in metadata.items():
        if key in (*_NUMERIC_METADATA, "displayTimeUnit", "deviceProperties", "distributedInfo"):
            continue
        for text in _texts(value):
            yield from (text,) if distinctive(text) else ()
            yield from (part for part in re.split(r"[/\\]", text) if distinctive(part))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)


# --- what is kept ---------------------------------------------------------------------------


def _kept_metadata(found: dict[str, Any], cleaner: Cleaner, tally: Tally) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key in _NUMERIC_METADATA:
        value = found.get(key)
        if isinstance(value, int) or (isinstance(value, str) and _VERSION.fullmatch(value)):
            kept[key] = value
    if found.get("displayTimeUnit") in ("ms", "ns"):
        kept["displayTimeUnit"] = found["displayTimeUnit"]
    devices = found.get("deviceProperties")
    if isinstance(devices, list):
        kept["deviceProperties"] = [_device(one) for one in devices if isinstance(one, dict)]
    job = found.get("distributedInfo")
    if isinstance(job, dict):
        kept["distributedInfo"] = _job(job, cleaner)
    dropped = found.keys() - kept.keys() - {"traceEvents"}
    tally.add("facts about the run beside the events (names, paths, identifiers)", len(dropped))
    return kept


def _device(found: dict[str, Any]) -> dict[str, Any]:
    kept = {key: found[key] for key in _DEVICE_FIELDS if isinstance(found.get(key), int)}
    name = gpu_name(str(found.get("name", "")))
    return {**kept, "name": name} if name else kept


def _job(found: dict[str, Any], cleaner: Cleaner) -> dict[str, Any]:
    def whole(source: dict[str, Any], *keys: str) -> dict[str, Any]:
        return {key: source[key] for key in keys if isinstance(source.get(key), int)}

    kept = whole(found, "rank", "world_size", "pg_count")
    for key in ("backend", "nccl_version"):
        value = found.get(key)
        if isinstance(value, str) and (
            value in ("nccl", "gloo", "mpi") or _VERSION.fullmatch(value)
        ):
            kept[key] = value
    groups = found.get("pg_config")
    if isinstance(groups, list):
        kept["pg_config"] = [
            {
                **{k: cleaner.clean(str(one[k])) for k in ("pg_name", "pg_desc") if k in one},
                **whole(one, "pg_size"),
                **({"ranks": one["ranks"]} if _is_ranks(one.get("ranks")) else {}),
            }
            for one in groups
            if isinstance(one, dict)
        ]
    return kept


def _is_ranks(value: Any) -> bool:
    if isinstance(value, str):
        return bool(_NUMBERS.fullmatch(value.encode()))
    return isinstance(value, list) and all(isinstance(one, int) for one in value)


def _kept(
    event: Event, cleaner: Cleaner, tally: Tally, threads: dict[bytes, bytes]
) -> bytes | None:
    """The event as JSON with what may stay of it, or None."""
    category = _text(event.get("cat"))
    if category not in _CATEGORIES:
        tally.add(
            "events of no kind that an analysis reads (process and thread names, unknown kinds)"
        )
        return None
    if category == "python_function" and not (_text(event.get("name")) or "").startswith("nn."):
        tally.add("Python frames (file and function names)")
        return None
    parts = [b'"cat":' + json.dumps(category).encode()]
    for key, raw in event.items():
        value = bytes(raw)
        if key in _NUMERIC_FIELDS:
            keep = value if _NUMBER.fullmatch(value.strip(b'"')) or value == b"null" else None
        elif key in _IDENTIFIERS:
            keep = value if _NUMBER.fullmatch(value.strip(b'"')) else _numbered(value, threads)
        elif key == "name":
            keep = _cleaned(raw, cleaner)
        elif key == "ph":
            keep = value if _text(raw) in _PHASES else None
        elif key in ("s", "bp"):
            keep = value if _text(raw) in _SCOPES else None
        elif key == "args":
            keep = _args(raw, cleaner, tally)
        else:
            keep = None if key != "cat" else b""
        if keep:
            parts.append(b'"' + key.encode() + b'":' + keep)
        elif keep is None:
            tally.add("fields of events that no analysis reads")
    return b"{" + b",".join(parts) + b"}"


def _numbered(value: bytes, threads: dict[bytes, bytes]) -> bytes:
    """A number for a process or thread that has words for one: the words tell them apart only."""
    return threads.setdefault(value, b'"#%d"' % len(threads))


def _text(raw: Raw | None) -> str | None:
    try:
        value = msgspec.json.decode(raw) if raw is not None else None
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _cleaned(raw: Raw, cleaner: Cleaner) -> bytes | None:
    text = _text(raw)
    if text is None:
        return bytes(raw) if _NUMBER.fullmatch(bytes(raw)) else None
    return json.dumps(cleaner.clean(text)).encode()


def _args(raw: Raw, cleaner: Cleaner, tally: Tally) -> bytes | None:
    try:
        found = msgspec.json.decode(raw, type=Event)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None
    parts = []
    for key, value in found.items():
        keep = _argument(key, value, cleaner)
        if keep is None:
            tally.add("arguments of events that no analysis reads")
        else:
            parts.append(json.dumps(key).encode() + b":" + keep)
    return b"{" + b",".join(parts) + b"}"


def _argument(key: str, raw: Raw, cleaner: Cleaner) -> bytes | None:
    value = bytes(raw)
    if key in _NUMERIC_ARGS:
        numeric = _NUMBERS.fullmatch(value) or _NUMBER_TEXT.fullmatch(value)
        return value if numeric or value in (b"null", b"true", b"false") else None
    if key in _NUMBER_TEXT_ARGS:
        whole = _NUMBER_TEXT.fullmatch(value) or _NUMBERS.fullmatch(value)
        # c10d shortens long lists with dots.
        return value if whole else None
    if key in _NAME_ARGS:
        return _cleaned(raw, cleaner)
    if key in _WORD_ARGS:
        text = _text(raw)
        fits = text is not None and _WORD.fullmatch(text) and cleaner.clean(text) == text
        return value if fits else None
    return None
