"""What NCCL's NVTX ranges tell about communication kernels: operation, communicator and bytes.

NCCL opens a range for every API call, and its payload names the communicator, the message size and
the peer. A kernel is launched inside the call itself or, in a group, inside the outermost
ncclGroupEnd, on the same thread: that pairs calls with kernels without a guess.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import polars as pl
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from moe_advisor.codes import few
from moe_advisor.model import (
    COLLECTIVE_SCHEMA,
    NONE,
    ActivityKind,
    CaptureIssue,
    CollectiveKind,
    CopyKind,
    Severity,
)
from moe_advisor.table_source import Column, TableSource

Int64s = NDArray[np.int64]

NCCL_SCHEMA_BASE = 1 << 24
"""NCCL's payload schemas are numbered from here (nvtx.h)."""

_KINDS = {
    "ncclAllGather": CollectiveKind.ALL_GATHER,
    "ncclAllReduce": CollectiveKind.ALL_REDUCE,
    "ncclBroadcast": CollectiveKind.BROADCAST,
    "ncclBcast": CollectiveKind.BROADCAST,
    "ncclReduceScatter": CollectiveKind.REDUCE_SCATTER,
    "ncclReduce": CollectiveKind.REDUCE,
    "ncclAlltoAll": CollectiveKind.ALL_TO_ALL,
    "ncclGather": CollectiveKind.GATHER,
    "ncclScatter": CollectiveKind.SCATTER,
    "ncclSend": CollectiveKind.SEND_RECV,
    "ncclRecv": CollectiveKind.SEND_RECV,
}
# The collectives that NCCL can do with copy engines instead of a kernel (2.28 on).
_COPY_ENGINE_KINDS = (
    CollectiveKind.ALL_GATHER,
    CollectiveKind.ALL_TO_ALL,
    CollectiveKind.GATHER,
    CollectiveKind.SCATTER,
)
_FEW_PEERS = 2
"""A pipeline stage or a ring step talks to at most its two neighbours."""

_NO_PEER = 2**62
"""Above every rank."""

_PEERS = ("to_low", "to_high", "from_low", "from_high")

_LARGEST_MESSAGE_BYTES = 2**50
"""No message is a pebibyte: a larger number is a payload read wrongly."""

_HEADER_BYTES = 32
"""Of a payload: domain, schema, size and offset, 8 bytes each."""

_NO_COMMUNICATOR = 0
_SCHEMA = pl.Schema(cast("dict[str, pl.DataType]", COLLECTIVE_SCHEMA))


# --- payloads -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Layout:
    """Byte offsets of the fields of a payload; None where it lacks one."""

    communicator: int | None = 0
    size: int | None = None
    peer: int | None = None
    rank_count: int | None = None
    rank: int | None = None
    device: int | None = None


_MESSAGE = Layout(size=8)
_PEER_MESSAGE = Layout(size=8, peer=16)
_INIT = Layout(rank_count=8, rank=12, device=16)
_DEFAULT_LAYOUTS: dict[int, Layout] = {
    **dict.fromkeys((4, 5, 6, 7, 8, 16, 17, 18), _MESSAGE),
    **dict.fromkeys((9, 10), _PEER_MESSAGE),
    11: _INIT,
}
_FIELDS = {
    "nccl communicator id": "communicator",
    "message size [bytes]": "size",
    "peer rank": "peer",
    "no. of ranks": "rank_count",
    "rank": "rank",
    "cuda device": "device",
}
PAYLOAD_FIELDS = frozenset(_FIELDS)
"""Names of the fields of NCCL's payloads that are read, in lower case."""
_WIDE_FIELDS = frozenset({"communicator", "size"})  # 8 bytes; the others are 4


def payload_layouts(source: TableSource) -> dict[int, Layout]:
    """Schema number -> layout, as the export describes it, else as NCCL has it."""
    rows = source.fetch(
        "NVTX_PAYLOAD_SCHEMA_ENTRIES",
        (Column("schemaId"), Column("idx"), Column("name", ""), Column("offset", 0)),
    ).unique(maintain_order=True)
    described: dict[int, dict[str, int]] = {}
    for schema, index, name, offset in rows.iter_rows():
        target = _FIELDS.get(name.strip().lower())
        # Offset 0 belongs to the first entry only; elsewhere it means that none was given.
        if target is not None and 0 <= offset < 256 and (offset > 0 or index <= 0):
            described.setdefault(schema - NCCL_SCHEMA_BASE, {}).setdefault(target, offset)
    layouts = dict(_DEFAULT_LAYOUTS)
    for number, fields in described.items():
        if "communicator" in fields:
            layouts[number] = Layout(**fields)
    return layouts


@dataclass(frozen=True, slots=True)
class Payloads:
    """Decoded payload fields, one entry per range; NONE where a payload lacks the field."""

    communicator: Int64s
    size: Int64s
    peer: Int64s
    rank_count: Int64s
    rank: Int64s
    device: Int64s
    present: NDArray[np.bool_]


_NUMBERS: Mapping[int, np.dtype[Any]] = {8: np.dtype("<i8"), 4: np.dtype("<i4")}


def _number(data: NDArray[np.uint8], at: Int64s, size: int) -> NDArray[np.integer[Any]]:
    """The little-endian numbers of `size` bytes that begin at `at`, wherever that is."""
    every = as_strided(
        data[:size].view(_NUMBERS[size]), shape=(len(data) - size + 1,), strides=(1,)
    )
    return np.asarray(every[at])


def decode(blobs: pl.Series, layouts: Mapping[int, Layout]) -> Payloads:
    """The fields of NVTX payload `blobs` (Binary; empty means none).

    A blob is a header of four little-endian u64 (domain, schema, payload size, payload offset)
    and the payload. What does not fit that is taken for no payload.
    """
    fields = {
        name: np.full(len(blobs), NONE, dtype=np.int64)
        for name in ("communicator", "size", "peer", "rank_count", "rank", "device")
    }
    fields["communicator"][:] = _NO_COMMUNICATOR
    present = np.zeros(len(blobs), dtype=np.bool_)
    lengths = blobs.bin.size().fill_null(0).to_numpy().astype(np.int64)
    rows = np.flatnonzero(lengths >= _HEADER_BYTES + 8)
    if not len(rows):
        return Payloads(**fields, present=present)
    # One behind the other in one piece, whose every byte may begin a number.
    data = np.frombuffer(b"".join(blobs.gather(rows).to_list()), dtype=np.uint8)
    lengths = lengths[rows]
    starts = np.cumsum(lengths) - lengths
    length, offset = (_number(data, starts + at, 8).view(np.uint64) for at in (16, 24))
    fits = (offset == _HEADER_BYTES) & (length <= (lengths - _HEADER_BYTES).astype(np.uint64))
    schemas = np.where(fits, _number(data, starts + 8, 8) - NCCL_SCHEMA_BASE, NONE)
    for schema in few(schemas):
        layout = layouts.get(schema)
        if layout is None:
            continue
        chosen = np.flatnonzero(schemas == schema)
        present[rows[chosen]] = True
        begin, room = starts[chosen] + _HEADER_BYTES, lengths[chosen] - _HEADER_BYTES
        for name, values in fields.items():
            at = getattr(layout, name)
            if at is None:
                continue
            width = 8 if name in _WIDE_FIELDS else 4
            there = np.flatnonzero(room >= at + width)
            values[rows[chosen[there]]] = _number(data, begin[there] + at, width)
    size = fields["size"]
    size[(size < 0) | (size > _LARGEST_MESSAGE_BYTES)] = NONE
    return Payloads(**fields, present=present)


# --- which calls belong together --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RankWork:
    """What is needed of one rank: its process, its activities and calls."""

    process: int
    activities: pl.DataFrame
    calls: pl.DataFrame


@dataclass(frozen=True, slots=True)
class Collectives:
    """One table per rank in COLLECTIVE_SCHEMA, and what was learned about ranks."""

    tables: tuple[pl.DataFrame, ...]
    ranks: tuple[int, ...] | None = None
    world_size: int | None = None
    issues: tuple[CaptureIssue, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class _Batches:
    """Operations that NCCL launches together, and the host interval of their launch.

    operations: process, batch, order, name, kind, communicator, size, peer.
    scopes: batch, tid, start_ns, end_ns; disjoint on a thread.
    inits: process, communicator, rank_count, rank, device.
    """

    operations: pl.DataFrame
    scopes: pl.DataFrame
    inits: pl.DataFrame
    without_payload: int


def _batches(
    process: int, nccl: pl.DataFrame, layouts: Mapping[int, Layout], first_batch: int
) -> _Batches:
    columns = (-nccl["end_ns"].to_numpy(), nccl["start_ns"].to_numpy(), nccl["tid"].to_numpy())
    nccl = nccl[np.lexsort(columns)]
    payloads = decode(nccl["payload"], layouts)
    name = nccl["name"]
    is_operation = name.is_in(list(_KINDS)).to_numpy()
    is_open = (name == "ncclGroupStart").to_numpy()
    is_close = (name == "ncclGroupEnd").to_numpy()
    tid = nccl["tid"].to_numpy()
    start, end = nccl["start_ns"].to_numpy(), nccl["end_ns"].to_numpy()
    batch = np.full(nccl.height, NONE, dtype=np.int64)
    scope_rows: list[Int64s] = []
    scope_batches: list[Int64s] = []
    next_batch = first_batch
    edges = np.flatnonzero(np.concatenate([[True], tid[1:] != tid[:-1], [True]]))
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        part = slice(low, high)
        # An operation built from others shows their ranges inside its own: keep the outer one.
        operation_end = np.where(is_operation[part], end[part], np.iinfo(np.int64).min)
        seen_end = np.concatenate([[np.iinfo(np.int64).min], np.maximum.accumulate(operation_end)])
        outer = start[part] >= seen_end[:-1]
        operation = is_operation[part] & outer
        change = (is_open[part] & outer).astype(np.int64) - (is_close[part] & outer)
        level = np.cumsum(change)
        # A capture may begin inside a group: its lone end must not count below zero.
        level = level - np.minimum(np.minimum.accumulate(level), 0)
        before = np.concatenate([[0], level[:-1]])
        opens = (before == 0) & (level == 1)
        closes = (before == 1) & (level == 0)
        # A batch begins at an outermost GroupStart or at an operation outside any group.
        alone = operation & (level == 0)
        number = next_batch + np.cumsum(opens | alone) - 1
        batch[part] = np.where(operation, number, NONE)
        scoped = np.flatnonzero(closes | alone)
        scope_rows.append(scoped + low)
        scope_batches.append(number[scoped])
        next_batch = int(number[-1]) + 1 if len(number) else next_batch
    rows = np.flatnonzero(batch != NONE)
    operations = pl.DataFrame(
        {
            "process": np.full(len(rows), process, dtype=np.int64),
            "batch": batch[rows],
            "order": start[rows],
            "name": name.gather(rows.tolist()),
            "communicator": payloads.communicator[rows],
            "size": payloads.size[rows],
            "peer": payloads.peer[rows],
        }
    ).with_columns(
        kind=pl.col("name").replace_strict(
            {key: int(kind) for key, kind in _KINDS.items()}, return_dtype=pl.UInt8
        ),
        size=pl.when(pl.col("size") >= 0).then("size"),
    )
    scoped = np.concatenate(scope_rows) if scope_rows else np.zeros(0, dtype=np.int64)
    scopes = pl.DataFrame(
        {
            "batch": np.concatenate(scope_batches) if scope_batches else scoped,
            "tid": tid[scoped],
            "start_ns": start[scoped],
            "end_ns": end[scoped],
        }
    )
    is_init = np.flatnonzero(payloads.rank_count > 0)
    inits = pl.DataFrame(
        {
            "process": np.full(len(is_init), process, dtype=np.int64),
            "communicator": payloads.communicator[is_init],
            "rank_count": payloads.rank_count[is_init],
            "rank": payloads.rank[is_init],
            "device": payloads.device[is_init],
        }
    )
    return _Batches(operations, scopes, inits, int((~payloads.present[rows]).sum()))


# --- groups of rows -----------------------------------------------------------------------------


class _Groups:
    """The rows of a table that agree in the first `keys`, ordered by the last of them.

    Reducing neighbours takes a tenth of the time of a `group_by` with many small groups.
    """

    def __init__(self, *keys: Int64s) -> None:
        self.rows = np.lexsort(keys[::-1])
        new = np.ones(len(self.rows), dtype=np.bool_)
        new[1:] = np.any([key[self.rows[1:]] != key[self.rows[:-1]] for key in keys[:-1]], axis=0)
        self._starts = np.flatnonzero(new)
        last = keys[-1][self.rows]
        self._changes = new
        self._changes[1:] |= last[1:] != last[:-1]

    @property
    def first(self) -> NDArray[np.intp]:
        """A row of each group."""
        return self.rows[self._starts]

    def sum(self, values: NDArray[Any]) -> Int64s:
        """The sum of each group."""
        return np.add.reduceat(values[self.rows], self._starts, dtype=np.int64)

    def least(self, values: NDArray[Any]) -> Int64s:
        """The smallest value of each group."""
        return np.minimum.reduceat(values[self.rows], self._starts).astype(np.int64)

    def most(self, values: NDArray[Any]) -> Int64s:
        """The largest value of each group."""
        return np.maximum.reduceat(values[self.rows], self._starts).astype(np.int64)

    def distinct(self, counts: NDArray[np.bool_]) -> Int64s:
        """How many different values the last key has in the rows of each group that count."""
        return np.add.reduceat(self._changes & counts[self.rows], self._starts, dtype=np.int64)


# --- communicators ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Communicators:
    """What is known of the report's communicators.

    sizes: communicator, group_size. all_to_all: those whose Send and Recv are all-to-alls.
    selves: process, communicator, self_rank (null: one of several that send themselves as much).
    candidates: process, communicator, peer: who may be the process itself.
    """

    sizes: pl.DataFrame
    all_to_all: pl.Series
    selves: pl.DataFrame
    candidates: pl.DataFrame
    assumed: int


def _communicators(operations: pl.DataFrame, inits: pl.DataFrame) -> _Communicators:
    sends, receives = pl.col("name") == "ncclSend", pl.col("name") == "ncclRecv"
    known = operations.filter(pl.col("communicator") != _NO_COMMUNICATOR)
    messages = known.filter((sends | receives) & (pl.col("peer") >= 0))
    per_peer = _per_peer(messages)
    in_batch = _Groups(*(per_peer[key].to_numpy() for key in ("batch", "communicator", "peer")))
    per_batch = per_peer[in_batch.first].select(
        "process",
        "communicator",
        peers=pl.Series(in_batch.sum(np.ones(per_peer.height, dtype=np.bool_))),
        both=pl.Series(in_batch.most(per_peer["sends"].to_numpy()) > 0)
        & pl.Series(in_batch.most(per_peer["receives"].to_numpy()) > 0),
    )
    per_process = (
        per_batch.group_by("process", "communicator")
        .agg(
            many=((pl.col("peers") > _FEW_PEERS) & pl.col("both")).any(),
            several=((pl.col("peers") >= _FEW_PEERS) & pl.col("both")).any(),
        )
        .join(_peer_orders(messages), on=["process", "communicator"])
    )
    # Whoever gets from me exactly what I get from it, every time, in a communicator whose every
    # rank I send to, is me: nobody else's share agrees once the routing is uneven.
    peers = per_peer.group_by("process", "communicator", "peer").agg(
        same=(pl.col("sent") == pl.col("received")).all() & pl.col("sends").any()
    )
    reach = peers.group_by("process", "communicator").agg(
        complete=pl.col("peer").n_unique() == pl.col("peer").max() + 1,
        likely=pl.col("same").sum(),
        highest=pl.col("peer").max(),
    )
    facts = per_process.join(reach, on=["process", "communicator"])
    # Two neighbours of a pipeline look like two ranks that include oneself only if they are 0 and
    # 1 in this order; torch's all-to-all goes through the ranks upwards.
    facts = facts.with_columns(
        with_self=pl.col("complete")
        & pl.col("several")
        & pl.col("ascending")
        & (pl.col("likely") > 0)
    ).with_columns(all_to_all=pl.col("many") | pl.col("with_self"))
    all_to_all = facts.filter("all_to_all")["communicator"].unique()
    candidates = (
        peers.filter("same")
        .join(
            facts.filter(pl.col("with_self") | (pl.col("many") & pl.col("complete"))),
            on=["process", "communicator"],
            how="semi",
        )
        .select("process", "communicator", "peer")
    )
    selves = (
        candidates.group_by("process", "communicator")
        .agg(self_rank=pl.col("peer").first(), several=pl.len())
        .filter(pl.col("several") == 1)
        .select("process", "communicator", "self_rank")
    )
    told = inits.group_by("communicator").agg(group_size=pl.col("rank_count").max())
    reached = (
        facts.filter("all_to_all")
        .group_by("communicator")
        .agg(group_size=pl.col("highest").max() + 1)
    )
    # No payload of a collective names the size of its communicator. Where the capture missed its
    # creation, the processes that use it are the best guess, and it is said so.
    used = (
        known.filter(~(sends | receives))
        .group_by("communicator")
        .agg(group_size=pl.col("process").n_unique().cast(pl.Int64))
        .filter(pl.col("group_size") > 1)
    )
    reached = reached.join(told, on="communicator", how="anti")
    used = used.join(told, on="communicator", how="anti").join(
        reached, on="communicator", how="anti"
    )
    return _Communicators(
        sizes=pl.concat([told, reached, used]),
        all_to_all=all_to_all,
        selves=selves,
        candidates=candidates,
        assumed=used.height,
    )


def _per_peer(messages: pl.DataFrame) -> pl.DataFrame:
    """What each batch exchanges with each peer: the bytes known, and whether any message does."""
    keys = ("batch", "communicator", "peer", "order")
    groups = _Groups(*(messages[key].to_numpy() for key in keys))
    size = messages["size"].fill_null(0).to_numpy()
    sends, receives = ((messages["name"] == one).to_numpy() for one in ("ncclSend", "ncclRecv"))
    return messages[groups.first].select(
        "process",
        "communicator",
        "batch",
        "peer",
        sent=pl.Series(groups.sum(np.where(sends, size, 0))),
        received=pl.Series(groups.sum(np.where(receives, size, 0))),
        sends=pl.Series(groups.sum(sends) > 0),
        receives=pl.Series(groups.sum(receives) > 0),
    )


def _peer_orders(messages: pl.DataFrame) -> pl.DataFrame:
    """Whether the peers of each batch only ever ascend: process, communicator, ascending."""
    communicator = messages["communicator"].to_numpy()
    batch, peer = messages["batch"].to_numpy(), messages["peer"].to_numpy()
    rows = np.lexsort((messages["order"].to_numpy(), communicator, batch))
    before, after = rows[:-1], rows[1:]
    falls = np.zeros(len(rows), dtype=np.bool_)
    falls[after] = (
        (batch[before] == batch[after])
        & (communicator[before] == communicator[after])
        & (peer[before] > peer[after])
    )
    return (
        messages.select("process", "communicator", falls=pl.Series(falls))
        .group_by("process", "communicator")
        .agg(ascending=~pl.col("falls").any())
    )


# --- bytes and kinds --------------------------------------------------------------------------


def _per_operation(operations: pl.DataFrame, found: _Communicators) -> pl.DataFrame:
    """Adds group_size, sent, received and own bytes to each operation (null: unknown)."""
    kind, size = pl.col("kind"), pl.col("size")
    everyone = pl.when(pl.col("group_size") <= _LARGEST_MESSAGE_BYTES // 2**30).then(
        size * pl.col("group_size")
    )
    zero = pl.lit(0, dtype=pl.Int64)
    self_bytes = (
        operations.join(found.candidates, on=["process", "communicator", "peer"], how="semi")
        .filter(pl.col("name") == "ncclSend")
        .group_by("process", "batch", "communicator")
        .agg(own=pl.when(pl.col("size").n_unique() == 1).then(pl.col("size").first()))
    )
    return (
        operations.join(found.sizes, on="communicator", how="left", maintain_order="left")
        .join(
            self_bytes,
            on=["process", "batch", "communicator"],
            how="left",
            maintain_order="left",
        )
        .with_columns(
            sent=pl.when(pl.col("name") == "ncclRecv")
            .then(zero)
            .when(kind.is_in([int(CollectiveKind.ALL_TO_ALL), int(CollectiveKind.REDUCE_SCATTER)]))
            .then(everyone)
            .when(kind != int(CollectiveKind.SCATTER))
            .then(size),
            received=pl.when(pl.col("name") == "ncclSend")
            .then(zero)
            .when(kind.is_in([int(CollectiveKind.ALL_TO_ALL), int(CollectiveKind.ALL_GATHER)]))
            .then(everyone)
            .when(kind != int(CollectiveKind.GATHER))
            .then(size),
            own_part=pl.when(
                kind.is_in(
                    [
                        int(CollectiveKind.ALL_TO_ALL),
                        int(CollectiveKind.ALL_GATHER),
                        int(CollectiveKind.REDUCE_SCATTER),
                    ]
                )
            ).then(size),
        )
    )


def _per_launch(operations: pl.DataFrame, found: _Communicators) -> pl.DataFrame:
    """One row per batch and communicator: what one launch of NCCL does."""
    detailed = _per_operation(operations, found)
    message = int(CollectiveKind.SEND_RECV)
    kind, peer = detailed["kind"].to_numpy(), detailed["peer"].to_numpy()
    known = peer >= 0
    groups = _Groups(detailed["batch"].to_numpy(), detailed["communicator"].to_numpy(), peer)

    def total(column: str) -> pl.Series:
        """The sum of `column`, null if any part of it is unknown."""
        unknown = groups.sum(detailed[column].is_null().to_numpy()) > 0
        summed = pl.Series(groups.sum(detailed[column].fill_null(0).to_numpy()))
        return summed.set(pl.Series(unknown), None)

    columns: dict[str, Int64s] = {}
    for name, side in (("ncclSend", "to"), ("ncclRecv", "from")):
        is_one = (detailed["name"] == name).to_numpy()
        columns[f"{side}_count"] = groups.sum(is_one)
        highest = groups.most(np.where(is_one & known, peer, NONE))
        lowest = groups.least(np.where(is_one & known, peer, _NO_PEER))
        columns[f"{side}_high"] = highest
        columns[f"{side}_low"] = np.where(highest == NONE, NONE, lowest)
    kinds, other_kinds = groups.least(kind), groups.most(kind)
    launches = detailed[groups.first].select(
        "batch",
        "communicator",
        "group_size",
        kind=pl.Series(np.where(kinds == other_kinds, kinds, 0)),
        sent=total("sent"),
        received=total("received"),
        own=pl.when(pl.Series((kinds == message) & (other_kinds == message)))
        .then("own")
        .otherwise(total("own_part")),
        peers=pl.Series(groups.distinct(known)),
        **{name: pl.Series(values) for name, values in columns.items()},
    )
    named = pl.col("communicator") != _NO_COMMUNICATOR
    most = pl.max_horizontal("to_count", "from_count")
    by_count = (
        # Without payloads only the number of messages is known.
        pl.when((pl.col("to_count") > _FEW_PEERS) & (pl.col("from_count") > _FEW_PEERS))
        .then(int(CollectiveKind.ALL_TO_ALL))
        .when(most <= 1)
        .then(message)
        .otherwise(int(CollectiveKind.UNKNOWN))
    )
    by_peers = (
        pl.when(pl.col("communicator").is_in(found.all_to_all.to_list()))
        .then(int(CollectiveKind.ALL_TO_ALL))
        .when(pl.col("peers") <= _FEW_PEERS)
        .then(message)
        .when(pl.col("from_count") == 0)
        .then(int(CollectiveKind.SCATTER))
        .when(pl.col("to_count") == 0)
        .then(int(CollectiveKind.GATHER))
        .otherwise(int(CollectiveKind.ALL_TO_ALL))
    )
    return launches.with_columns(
        kind=pl.when(pl.col("kind") != message)
        .then("kind")
        .when(named)
        .then(by_peers)
        .otherwise(by_count)
        .cast(pl.UInt8)
    )


# --- pairing with GPU work ----------------------------------------------------------------------


def _launched(rank: RankWork, scopes: pl.DataFrame) -> pl.DataFrame:
    """The activities launched inside a scope: activity, batch, stream, is_copy, bytes."""
    call = rank.activities["call"].to_numpy()
    kind = rank.activities["kind"].to_numpy()
    copy_kind = rank.activities["copy_kind"].to_numpy()
    is_copy = (kind == ActivityKind.MEMCPY) & np.isin(
        copy_kind, [CopyKind.DEVICE_TO_DEVICE, CopyKind.PEER_TO_PEER]
    )
    rows = np.flatnonzero((call != NONE) & (is_copy | (kind == ActivityKind.KERNEL)))
    batch = _batch_of_calls(rank.calls, scopes)[call[rows]]
    found = np.flatnonzero(batch != NONE)
    rows, batch = rows[found], batch[found]
    return pl.DataFrame(
        {
            "activity": rows,
            "batch": batch,
            "launched_at": rank.calls["start_ns"].gather(call[rows]),
            "is_copy": is_copy[rows],
            "stream": rank.activities["stream"].gather(rows),
            "bytes": rank.activities["bytes"].gather(rows),
        }
    )


def _batch_of_calls(calls: pl.DataFrame, scopes: pl.DataFrame) -> Int64s:
    """The batch in whose scope each of `calls`, which are in order, begins; else NONE."""
    start, thread = calls["start_ns"].to_numpy(), calls["tid"].to_numpy()
    result = np.full(len(start), NONE, dtype=np.int64)
    for (tid,), scope in scopes.sort("start_ns").group_by("tid", maintain_order=True):
        opens = scope["start_ns"].to_numpy()
        # The last scope that was opened counts.
        closes = np.minimum(scope["end_ns"].to_numpy(), np.append(opens[1:], opens[-1:] + 2**62))
        low, high = np.searchsorted(start, opens), np.searchsorted(start, closes)
        length = np.maximum(high - low, 0)
        within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
        rows = np.repeat(low, length) + within
        mine = thread[rows] == tid
        result[rows[mine]] = np.repeat(scope["batch"].to_numpy(), length)[mine]
    return result


def _paired(launched: pl.DataFrame, launches: pl.DataFrame) -> pl.DataFrame:
    """`launched` joined with the launch of its communicator, one row per activity."""
    kernels = launched.filter(~pl.col("is_copy")).drop("is_copy", "bytes")
    batch = kernels["batch"].to_numpy()
    batches = max(int(launches["batch"].max() or 0), int(launched["batch"].max() or 0)) + 1  # type: ignore[arg-type]
    kernel_count = np.bincount(batch, minlength=batches)
    communicators = np.bincount(launches["batch"].to_numpy(), minlength=batches)
    kernels = kernels.with_columns(kernels=pl.Series(kernel_count[batch]))
    launches = launches.with_columns(
        communicators=pl.Series(communicators[launches["batch"].to_numpy()])
    )
    alone = launches.filter(pl.col("communicators") == 1)
    launch_of_batch = np.full(batches, NONE, dtype=np.int64)
    launch_of_batch[alone["batch"].to_numpy()] = np.arange(alone.height)
    launch = launch_of_batch[batch]
    single = pl.concat(
        [
            kernels.filter(pl.Series(launch != NONE)),
            alone.drop("batch")[launch[launch != NONE]],
        ],
        how="horizontal",
    )
    pairs = [_spread(single)]
    shared = launches.filter(pl.col("communicators") > 1)
    if shared.height:
        pairs.append(_spread(_paired_in_shared_batches(kernels, shared, single)))
    copies = launched.filter(pl.col("is_copy"))
    copies = copies.filter(pl.Series(kernel_count[copies["batch"].to_numpy()] == 0))
    engine = copies.join(alone, on="batch").filter(
        pl.col("kind").is_in([int(kind) for kind in _COPY_ENGINE_KINDS])
        & (pl.col("group_size").fill_null(0) != 1)
    )
    unknown = pl.lit(None, dtype=pl.Int64)
    pairs.append(engine.with_columns(sent=pl.col("bytes"), received=unknown, own=unknown))
    columns = ["activity", "kind", "communicator", "group_size", "sent", "received", "own", *_PEERS]
    return pl.concat([pair.select(columns) for pair in pairs]).sort("activity")


def _paired_in_shared_batches(
    kernels: pl.DataFrame, shared: pl.DataFrame, single: pl.DataFrame
) -> pl.DataFrame:
    """Kernels of batches with several communicators, which launch one kernel for each.

    A stream that elsewhere serves one communicator names it; else the order does.
    """
    # NCCL orders the communicators of a group by their hash, which is unsigned.
    hashed = pl.col("communicator").reinterpret(signed=False)
    shared = shared.with_columns(place=hashed.rank("ordinal").over("batch") - 1)
    kernels = kernels.sort("launched_at", "activity").with_columns(
        place=pl.int_range(pl.len(), dtype=pl.UInt32).over("batch")
    )
    learned = (
        single.group_by("stream")
        .agg(communicator=pl.col("communicator").first(), several=pl.col("communicator").n_unique())
        .filter(pl.col("several") == 1)
        .select("stream", "communicator")
    )
    mine = kernels.join(shared.select("batch").unique(), on="batch", how="semi")
    by_stream = mine.join(learned, on="stream").join(
        shared.drop("place"), on=["batch", "communicator"]
    )
    complete = (
        by_stream.group_by("batch").agg(done=pl.len() == pl.col("kernels").first()).filter("done")
    )
    by_stream = by_stream.join(complete, on="batch", how="semi")
    rest = mine.join(complete, on="batch", how="anti")
    by_order = rest.join(shared, on=["batch", "place"]).filter(
        pl.col("kernels") == pl.col("communicators")
    )
    pairs = pl.concat([by_stream, by_order.select(by_stream.columns)])
    return pairs.with_columns(kernels=pl.len().over("batch", "communicator"))


def _spread(pairs: pl.DataFrame) -> pl.DataFrame:
    """Bytes are known per launch: where it took several kernels, no kernel's share is."""
    alone = pl.col("kernels") == 1
    return pairs.with_columns(
        pl.when(alone).then(pl.col(column)) for column in ("sent", "received", "own")
    )


@dataclass(frozen=True, slots=True)
class Launches:
    """What NCCL launched by its own account, whatever came of it on the GPU."""

    batches: Mapping[int, _Batches]
    operations: pl.DataFrame
    inits: pl.DataFrame
    communicators: _Communicators
    table: pl.DataFrame


def launches(nccl: Mapping[int, pl.DataFrame], layouts: Mapping[int, Layout]) -> Launches | None:
    """The launches of each process from its NCCL ranges; None where there are none.

    The columns of `nccl` are start_ns, end_ns, tid, name and payload.
    """
    batches: dict[int, _Batches] = {}
    next_batch = 0
    for process, ranges in nccl.items():
        found = _batches(process, ranges, layouts, next_batch)
        batches[process] = found
        last = [frame["batch"].max() for frame in (found.operations, found.scopes)]
        next_batch = max([next_batch, *(int(one) + 1 for one in last if one is not None)])  # type: ignore[arg-type]
    if not batches:
        return None
    operations = pl.concat([batch.operations for batch in batches.values()])
    inits = pl.concat([batch.inits for batch in batches.values()])
    communicators = _communicators(operations, inits)
    return Launches(
        batches, operations, inits, communicators, _per_launch(operations, communicators)
    )


def collectives(
    ranks: Sequence[RankWork], made: Launches | None, name_code: Callable[[str], int]
) -> Collectives:
    """The collectives of each rank, in the order of `ranks`.

    `name_code` turns a communicator's name into the code of a name of the trace.
    """
    if made is None:
        return Collectives(tuple(_SCHEMA.to_frame() for _ in ranks))
    batches, operations, inits = made.batches, made.operations, made.inits
    communicators = made.communicators
    launched = [
        _launched(rank, batches[rank.process].scopes) if rank.process in batches else None
        for rank in ranks
    ]
    launches = _without_shared_bytes(ranks, launched, made.table)
    unique = sorted(set(operations["communicator"].to_list()))
    codes = {one: name_code(communicator_name(one)) for one in unique}
    tables = tuple(
        _SCHEMA.to_frame()
        if one is None
        else _as_table(
            _with_place(_paired(one, launches), rank.process, inits, communicators),
            codes,
            name_code(""),
        )
        for rank, one in zip(ranks, launched, strict=True)
    )
    numbers, world = _rank_numbers(ranks, inits, communicators)
    return Collectives(tables, numbers, world, _issues(batches, operations, communicators))


def communicator_name(communicator: int) -> str:
    """How a communicator is called; empty if it is not known."""
    if communicator == _NO_COMMUNICATOR:
        return ""
    return f"comm-{communicator & 0xFFFFFFFFFFFFFFFF:016x}"


def _without_shared_bytes(
    ranks: Sequence[RankWork], launched: Sequence[pl.DataFrame | None], launches: pl.DataFrame
) -> pl.DataFrame:
    """Forget the bytes of batches on several devices of a process: whose they are is not known."""
    processes = [rank.process for rank in ranks]
    parts = [
        one.select("batch").unique()
        for rank, one in zip(ranks, launched, strict=True)
        if one is not None and processes.count(rank.process) > 1
    ]
    if not parts:
        return launches
    batches = pl.concat(parts).group_by("batch").len().filter(pl.col("len") > 1)["batch"]
    shared = pl.col("batch").is_in(batches.to_list())
    return launches.with_columns(
        pl.when(~shared).then(pl.col(column)) for column in ("sent", "received", "own")
    )


def _with_place(
    pairs: pl.DataFrame, process: int, inits: pl.DataFrame, found: _Communicators
) -> pl.DataFrame:
    """Adds the process's own rank in each communicator, where the capture tells it."""
    told = inits.filter((pl.col("process") == process) & (pl.col("rank") >= 0)).filter(
        pl.len().over("communicator") == 1  # a process with several devices has several places
    )
    learned = found.selves.filter(pl.col("process") == process)
    places = pl.concat(
        [
            told.select("communicator", place=pl.col("rank").cast(pl.Int64)),
            learned.select("communicator", place=pl.col("self_rank").cast(pl.Int64)),
        ]
    ).unique("communicator", keep="first", maintain_order=True)
    return pairs.join(places, on="communicator", how="left", maintain_order="left")


def _as_table(pairs: pl.DataFrame, codes: Mapping[int, int], no_text: int) -> pl.DataFrame:
    def known(column: str) -> pl.Expr:
        return pl.col(column).fill_null(NONE)

    return pairs.select(
        activity="activity",
        kind="kind",
        group=pl.col("communicator").replace_strict(codes, default=no_text, return_dtype=pl.UInt32),
        description=pl.lit(no_text, dtype=pl.UInt32),
        group_size=known("group_size"),
        bytes_sent=known("sent"),
        bytes_received=known("received"),
        bytes_self=known("own"),
        in_splits=pl.lit([], dtype=pl.List(pl.Int64)),
        out_splits=pl.lit([], dtype=pl.List(pl.Int64)),
        sequence=pl.lit(NONE),
        place=known("place"),
        **{one: known(one) for one in _PEERS},
    ).cast(_SCHEMA)


def _rank_numbers(
    ranks: Sequence[RankWork], inits: pl.DataFrame, found: _Communicators
) -> tuple[tuple[int, ...] | None, int | None]:
    """Rank numbers from the largest communicator that holds all of `ranks`, and its size."""
    processes = [rank.process for rank in ranks]
    one_device_each = len(set(processes)) == len(processes)
    if inits.height:
        size = int(inits["rank_count"].max())  # type: ignore[arg-type]
        largest = inits.filter(pl.col("rank_count") == size)
        # The first of several equally large ones that numbers every rank differently.
        for (_,), group in largest.group_by("communicator", maintain_order=True):
            numbers = dict(group.select("process", "rank").iter_rows())
            chosen = tuple(numbers.get(process, NONE) for process in processes)
            if one_device_each and min(chosen) >= 0 and len(set(chosen)) == len(chosen):
                return chosen, size
        return None, size
    # A communicator of exactly the ranks of this report, whose own numbers could be learned.
    whole = found.sizes.filter(pl.col("group_size") == len(processes))["communicator"]
    for (_,), group in (
        found.selves.filter(pl.col("communicator").is_in(whole.to_list()))
        .sort("communicator")
        .group_by("communicator", maintain_order=True)
    ):
        numbers = dict(group.select("process", "self_rank").iter_rows())
        chosen = tuple(numbers.get(process, NONE) for process in processes)
        if one_device_each and sorted(chosen) == list(range(len(processes))):
            return chosen, None
    return None, None


def _issues(
    batches: Mapping[int, _Batches], operations: pl.DataFrame, found: _Communicators
) -> tuple[CaptureIssue, ...]:
    issues: list[CaptureIssue] = []
    missing = sum(batch.without_payload for batch in batches.values())
    if missing:
        issues.append(
            CaptureIssue(
                "nccl-payload-missing",
                Severity.WARNING,
                f"{missing} of {operations.height} NCCL calls carry no sizes or communicators;"
                " export the report with nsys export --include-blobs=true",
                missing,
            )
        )
    if found.assumed:
        issues.append(
            CaptureIssue(
                "communicator-size-assumed",
                Severity.INFO,
                f"the creation of {found.assumed} communicators is not in the capture: each is"
                " taken to have as many ranks as this report has users of it",
                found.assumed,
            )
        )
    return tuple(issues)
