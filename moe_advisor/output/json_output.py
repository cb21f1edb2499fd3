"""`result.json`: written deterministically, read with its version checked."""

from typing import Any

import msgspec

from moe_advisor.errors import InputError
from moe_advisor.result import SCHEMA_VERSION, Result

SCHEMA = "moe-advisor/result"


class _Head(msgspec.Struct):
    schema: str = ""
    schema_version: str = ""


def encode(result: Result) -> bytes:
    """The result as UTF-8 JSON, one top-level key a line, in the order of the contract."""
    encoder = msgspec.json.Encoder()
    lines = [
        # Encoded through the struct, so that `omit_defaults` and renamed fields hold.
        encoder.encode(field.encode_name) + b": " + encoder.encode(getattr(result, field.name))
        for field in msgspec.structs.fields(Result)
    ]
    return b"{\n" + b",\n".join(lines) + b"\n}\n"


def decode(data: bytes, name: str = "result.json") -> Result:
    """The result in `data`; `name` is for messages. Unknown keys of a newer minor are ignored.

    Raises InputError for JSON that is broken or no result, and for a newer major version.
    """
    head = _decode(data, _Head, name)
    if head.schema != SCHEMA:
        raise InputError(f"{name}: not a moe-advisor result: give a trace or a result.json")
    major, own = _major(head.schema_version), _major(SCHEMA_VERSION) or 0
    if major is None:
        raise InputError(f"{name}: schema_version {head.schema_version[:20]!r} is not a version")
    if major > own:
        raise InputError(
            f"{name}: written for result schema {major}, this program reads {own}: "
            "update moe-advisor"
        )
    result: Result = _decode(data, Result, name)
    _check_timeline(result, name)
    return result


def _decode(data: bytes, kind: Any, name: str) -> Any:
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{name}: not a valid result: {str(error)[:300]}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(
            f"{name}: broken JSON ({str(error)[:200]}): analyze the trace again"
        ) from None


def _major(version: str) -> int | None:
    head = version.partition(".")[0]
    return int(head) if head.isascii() and head.isdigit() and len(head) < 10 else None


def _check_timeline(result: Result, name: str) -> None:
    timeline = result.timeline
    if timeline is None:
        return
    columns = timeline.slices
    lengths = {len(getattr(columns, field)) for field in columns.__struct_fields__}
    if len(lengths) != 1:
        raise InputError(f"{name}: columns of timeline.slices differ in length")
    for field, size in (
        ("lane", len(timeline.lanes)),
        ("name", len(timeline.names)),
        ("role", len(timeline.roles)),
    ):
        column: list[int] = getattr(columns, field)
        if column and not (min(column) >= 0 and max(column) < size):
            raise InputError(f"{name}: timeline.slices.{field} points outside its list")
    host = (_is_slice(row, 4) for row in timeline.host)
    gaps = (_is_slice(row, 3) for row in timeline.gaps)
    pairs = (_is_slice(row, 2) for rows in (timeline.exposed, timeline.hidden) for row in rows)
    if not (all(host) and all(gaps) and all(pairs)):
        raise InputError(f"{name}: a row of the timeline is not [start_us, dur_us, ...]")


def _is_slice(row: list[Any], length: int) -> bool:
    return len(row) >= length and all(
        isinstance(value, int | float) and not isinstance(value, bool) for value in row[:2]
    )
