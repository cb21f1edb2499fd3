"""What one input of many gives, as bytes for the cache folder."""

from typing import Any

import msgspec
import numpy as np

from moe_advisor.measure.partial import RankPartial
from moe_advisor.model import CaptureIssue, InputInfo


class Entry(msgspec.Struct, frozen=True):
    """What one input gives: its description, what was found wrong, and its ranks' partials."""

    info: InputInfo
    issues: tuple[CaptureIssue, ...]
    partials: tuple[RankPartial, ...]


def encode(entry: Entry) -> bytes:
    """An entry as bytes: plain data, never code, since a cache folder may be shared."""
    return msgspec.msgpack.encode(entry, enc_hook=_plain)


def decode(data: bytes) -> Entry | None:
    """The entry in `data`; None if it is none."""
    try:
        return msgspec.msgpack.decode(data, type=Entry, dec_hook=_from_plain)
    except (msgspec.DecodeError, ValueError, TypeError):
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return [value.dtype.str, value.tobytes()]
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} can't be cached")


def _from_plain(kind: Any, value: Any) -> Any:
    dtype = np.dtype(value[0])
    if dtype.kind not in "iufb":
        raise ValueError(f"unexpected numbers {dtype}")
    del kind
    return np.frombuffer(value[1], dtype).copy()
