"""Which few of many ranks stand for all: whole expert-parallel groups, spread evenly."""

import json
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, Literal, Protocol

from moe_advisor.errors import InputError
from moe_advisor.roles.taxonomy import Taxonomy

HEAD_BYTES = 4 << 20
"""Kineto writes the process groups before the events; at 16,384 ranks they take about 1 MB."""

HEADS_AT_ONCE = 8
"""Files elsewhere answer after tens of milliseconds each."""

_GZIP = b"\x1f\x8b"
_FIELD = '"distributedInfo":'
_EVENTS = b'"traceEvents"'
_READ_BYTES = 1 << 16
_UNPACKED = 16 + zlib.MAX_WBITS  # gzip


class Source(Protocol):
    """A file here or elsewhere."""

    def open(self, mode: Literal["rb"], /) -> AbstractContextManager[IO[bytes]]:
        """Its bytes, read as they are asked for."""


@dataclass(frozen=True, slots=True)
class Sample:
    """The chosen inputs, by place, and a sentence that says what they are."""

    places: tuple[int, ...]
    message: str


def choose(
    found: Sequence[Source], kinds: Sequence[str], wanted: int, taxonomy: Taxonomy
) -> Sample | None:
    """At most `wanted` (at least 1) of the inputs; None where that is all of them.

    Waiting and transfer need every member of a group, so whole expert-parallel groups are taken
    where the files say them and one fits; else single inputs, evenly spread.
    """
    if wanted >= len(found):
        return None
    groups: dict[tuple[int, ...], list[int]] = {}

    def group(pair: tuple[Source, str]) -> tuple[int, ...] | None:
        return expert_group(pair[0], taxonomy) if pair[1] == "kineto" else None

    with ThreadPoolExecutor(HEADS_AT_ONCE) as pool:
        for place, ranks in enumerate(pool.map(group, zip(found, kinds, strict=True))):
            if ranks:
                groups.setdefault(ranks, []).append(place)
    whole = [
        places
        for ranks, places in sorted(groups.items())
        if len(places) == len(ranks) and len(ranks) <= wanted
    ]
    if not whole:
        places = _spread(len(found), wanted)
        return Sample(
            tuple(places),
            f"a sample: {len(places)} of {len(found)} inputs, evenly spread; no whole "
            "expert-parallel group could be picked, so waiting and transfer are bounded at best",
        )
    size = max(len(places) for places in whole)
    picked = [whole[at] for at in _spread(len(whole), max(wanted // size, 1))]
    places = sorted(place for group in picked for place in group)
    return Sample(
        tuple(places),
        f"a sample: {len(places)} of {len(found)} inputs, {len(picked)} of {len(whole)} whole "
        "expert-parallel groups, evenly spread; slow ranks outside it are not seen",
    )


def _spread(total: int, wanted: int) -> list[int]:
    """`wanted` of the numbers below `total`, evenly, with both ends where there are two."""
    wanted = min(wanted, total)
    if wanted == 1:
        return [0]
    return sorted({round(i * (total - 1) / (wanted - 1)) for i in range(wanted)})


def expert_group(path: Source, taxonomy: Taxonomy) -> tuple[int, ...] | None:
    """The ranks of the expert-parallel group of a Kineto trace's rank, as its head lists them."""
    told = _distributed_info(path)
    rank, groups = told.get("rank"), told.get("pg_config")
    if not isinstance(rank, int) or not isinstance(groups, list):
        return None
    for group in groups:
        if not isinstance(group, dict) or not isinstance(group.get("ranks"), list):
            continue
        if taxonomy.group_family(str(group.get("pg_desc", ""))) != "ep":
            continue
        ranks = [one for one in group["ranks"] if isinstance(one, int)]
        if rank in ranks:
            return tuple(sorted(ranks))
    return None


def _head(file: IO[bytes]) -> bytes:
    """The plain text up to the events, `HEAD_BYTES` at most; the file need not allow seeks."""
    found = bytearray()
    unpack = zlib.decompressobj(_UNPACKED)
    packed = None
    while len(found) < HEAD_BYTES and (data := file.read(_READ_BYTES)):
        if packed is None:
            packed = data.startswith(_GZIP)
        while packed and data:
            found += unpack.decompress(data, HEAD_BYTES)
            data = unpack.unused_data
            if unpack.eof:
                unpack = zlib.decompressobj(_UNPACKED)
        if not packed:
            found += data
        if _FIELD.encode() in found and _EVENTS in found:
            break
    return bytes(found)


def _distributed_info(path: Source) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            head = _head(file).decode("utf-8", "replace")
    except (OSError, zlib.error, InputError):
        return {}
    at = head.find(_FIELD)
    if at < 0:
        return {}
    try:
        value, _ = json.JSONDecoder().raw_decode(head[at + len(_FIELD) :].lstrip())
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
