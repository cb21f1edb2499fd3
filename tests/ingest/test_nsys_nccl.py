"""Pairing NCCL's NVTX ranges and payloads with the kernels they launch."""

from pathlib import Path
from typing import Any

import polars as pl

from moe_advisor.ingest import nccl_nvtx, nsys_sqlite
from moe_advisor.model import NONE, CollectiveKind, LoadedInput, RankTrace
from tests.nsys_builder import NsysExport, comm_init, message

COMM = 0xF177A2C9146C258B  # above 2^63: signed it is negative
OTHER = 0x0303545512CF02FB
SEND_RECV_KERNEL = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<(unsigned long)4096>)"
Sizes = dict[int, tuple[int | None, int | None]]


class Script:
    """NCCL calls of one process, one after the other, each with its kernel."""

    def __init__(self, export: NsysExport, pid: int = 10, tid: int = 1) -> None:
        self.export, self.pid, self.tid = export, pid, tid
        self.at, self.correlation = 1_000, 0

    def launch(self, stream: int = 20, name: str = SEND_RECV_KERNEL) -> None:
        self.correlation += 1
        self.export.launched(
            self.at + 5_000, self.at + 6_000, name, self.correlation, self.pid,
            stream=stream, called=self.at + 10, tid=self.tid,
        )  # fmt: skip
        self.at += 200

    def one(self, name: str, blob: bytes | None = None, *, kernels: int = 1) -> None:
        start = self.at
        for _ in range(kernels):
            self.launch()
        self.export.nccl(start, self.at + 50, name, blob, self.pid, self.tid)
        self.at += 10_000

    def inside(self, name: str, blob: bytes | None = None) -> None:
        self.export.nccl(self.at, self.at + 10, name, blob, self.pid, self.tid)
        self.at += 20

    def end(self, *streams: int) -> None:
        start = self.at
        for stream in streams:
            self.launch(stream)
        self.export.nccl(start, self.at + 50, "ncclGroupEnd", None, self.pid, self.tid)
        self.at += 10_000

    def messages(self, sizes: Sizes, communicator: int = COMM, *, blobs: bool = True) -> None:
        """Send and Recv with each peer, as (bytes sent, bytes received)."""
        for peer, (sent, received) in sizes.items():
            for name, schema, size in (("ncclSend", 9, sent), ("ncclRecv", 10, received)):
                if size is not None:
                    blob = message(schema, communicator, size, peer) if blobs else None
                    self.inside(name, blob)

    def group(self, sizes: Sizes, communicator: int = COMM, *, blobs: bool = True) -> None:
        self.inside("ncclGroupStart")
        self.messages(sizes, communicator, blobs=blobs)
        self.end(20)


def load(export: NsysExport, folder: Path) -> LoadedInput:
    return nsys_sqlite.load(export.write(folder / "run.sqlite"))


def rows(rank: RankTrace) -> list[dict[str, Any]]:
    return [
        {**row, "group": rank.names[row["group"]]} for row in rank.collectives.iter_rows(named=True)
    ]


def brief(rank: RankTrace) -> list[tuple[str, int, int, int]]:
    return [
        (
            CollectiveKind(row["kind"]).name,
            row["bytes_sent"],
            row["bytes_received"],
            row["bytes_self"],
        )
        for row in rows(rank)
    ]


def single(export: NsysExport, folder: Path) -> RankTrace:
    (rank,) = load(export, folder).ranks
    return rank


def test_an_uneven_all_to_all_counts_its_own_share(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.group({0: (100, 40), 1: (60, 60)})  # this is rank 1: what it sends itself it receives
    script.group({0: (7, 9), 1: (5, 5)})
    rank = single(export, tmp_path)
    assert brief(rank) == [("ALL_TO_ALL", 160, 100, 60), ("ALL_TO_ALL", 12, 14, 5)]
    (first, second) = rows(rank)
    assert first["group"] == second["group"] == "comm-f177a2c9146c258b"
    assert first["group_size"] == 2
    assert first["activity"] == 0


def test_a_balanced_all_to_all_of_two_ranks_is_told_by_its_order(tmp_path: Path) -> None:
    export = NsysExport()
    Script(export).group({0: (64, 64), 1: (64, 64)})
    assert brief(single(export, tmp_path)) == [("ALL_TO_ALL", 128, 128, 64)]


def test_two_pipeline_neighbours_are_point_to_point(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.group({0: (64, 64), 2: (64, 64)})
    script.group({0: (None, 64), 2: (64, None)})
    assert {kind for kind, *_ in brief(single(export, tmp_path))} == {"SEND_RECV"}


def test_the_last_of_three_pipeline_stages_is_no_all_to_all(tmp_path: Path) -> None:
    export = NsysExport()
    Script(export).group({1: (64, 64), 0: (64, 64)})  # previous stage first, then the wrap-around
    assert brief(single(export, tmp_path))[0][0] == "SEND_RECV"


def test_one_peer_is_point_to_point(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.group({0: (64, 64)})
    script.one("ncclSend", message(9, COMM, 32, 0))
    assert brief(single(export, tmp_path)) == [
        ("SEND_RECV", 64, 64, NONE),
        ("SEND_RECV", 32, 0, NONE),
    ]


def test_more_than_two_peers_are_an_all_to_all(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.group({0: (1, 2), 1: (3, 3), 2: (5, 6), 3: (7, 8)})
    script.group({0: (10, 2), 2: (5, None)})  # nothing for the others this time
    rank = single(export, tmp_path)
    assert brief(rank) == [("ALL_TO_ALL", 16, 19, 3), ("ALL_TO_ALL", 15, 2, NONE)]
    assert {row["group_size"] for row in rows(rank)} == {4}


def test_nested_groups_launch_in_the_outermost_end(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.inside("ncclGroupStart")
    script.inside("ncclGroupStart")
    script.messages({0: (8, 8)})
    script.inside("ncclGroupEnd")
    script.messages({0: (2, 2)})
    script.end(20)
    assert brief(single(export, tmp_path)) == [("SEND_RECV", 10, 10, NONE)]


def test_a_capture_that_begins_inside_a_group_pairs_the_rest(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.messages({0: (8, 8)})
    script.end(20)
    script.group({0: (3, 4)})
    assert brief(single(export, tmp_path))[-1] == ("SEND_RECV", 3, 4, NONE)


def test_groups_of_two_threads_do_not_mix(tmp_path: Path) -> None:
    export = NsysExport()
    main, autograd = Script(export, tid=1), Script(export, tid=2)
    autograd.correlation = 100
    main.inside("ncclGroupStart")
    autograd.inside("ncclGroupStart")
    main.messages({0: (1, 2)})
    autograd.messages({0: (30, 40)}, OTHER)
    main.end(20)
    autograd.end(21)
    assert sorted(brief(single(export, tmp_path))) == [
        ("SEND_RECV", 1, 2, NONE),
        ("SEND_RECV", 30, 40, NONE),
    ]


def with_inits(ranks: tuple[int, ...], size: int) -> NsysExport:
    export = NsysExport()
    for place, rank in enumerate(ranks):
        script = Script(export, pid=10 + place)
        script.one("ncclCommInitRankConfig", comm_init(COMM, size, rank), kernels=0)
        script.one("ncclAlltoAll", message(16, COMM, 16))
        script.one("ncclAllGather", message(4, COMM, 10))
        script.one("ncclReduceScatter", message(7, COMM, 10))
        script.one("ncclAllReduce", message(5, COMM, 10))
    return export


def test_sizes_follow_the_meaning_of_each_collective(tmp_path: Path) -> None:
    rank = load(with_inits((0,), 8), tmp_path).ranks[0]
    assert brief(rank) == [
        ("ALL_TO_ALL", 128, 128, 16),
        ("ALL_GATHER", 10, 80, 10),
        ("REDUCE_SCATTER", 80, 10, 10),
        ("ALL_REDUCE", 10, 10, NONE),
    ]


def test_ranks_come_from_the_largest_communicator(tmp_path: Path) -> None:
    loaded = load(with_inits((5, 2), 8), tmp_path)
    assert loaded.info.ranks == (2, 5)
    assert [rank.rank_source for rank in loaded.ranks] == ["communicator"] * 2
    assert {rank.world_size for rank in loaded.ranks} == {8}


def test_the_size_of_a_communicator_made_before_the_capture_is_assumed_and_said(
    tmp_path: Path,
) -> None:
    export = NsysExport()
    for pid in (10, 11, 12):
        Script(export, pid).one("ncclAlltoAll", message(16, COMM, 16))
    loaded = load(export, tmp_path)
    assert brief(loaded.ranks[0]) == [("ALL_TO_ALL", 48, 48, 16)]
    assert "communicator-size-assumed" in {issue.id for issue in loaded.issues}


def test_an_unknown_group_size_leaves_bytes_unknown(tmp_path: Path) -> None:
    export = NsysExport()
    Script(export).one("ncclAlltoAll", message(16, COMM, 16))
    rank = single(export, tmp_path)
    assert brief(rank) == [("ALL_TO_ALL", NONE, NONE, 16)]
    assert rows(rank)[0]["group_size"] == NONE


def test_coalesced_collectives_in_one_kernel_add_up(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.inside("ncclGroupStart")
    script.inside("ncclAllReduce", message(5, COMM, 10))
    script.inside("ncclAllReduce", message(5, COMM, 30))
    script.end(20)
    assert brief(single(export, tmp_path)) == [("ALL_REDUCE", 40, 40, NONE)]


def test_a_launch_of_several_kernels_does_not_know_their_shares(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.inside("ncclGroupStart")
    script.inside("ncclAllReduce", message(5, COMM, 10))
    script.inside("ncclAllReduce", message(5, COMM, 30))
    script.end(20, 20)
    assert brief(single(export, tmp_path)) == [("ALL_REDUCE", NONE, NONE, NONE)] * 2


def two_communicators(export: NsysExport) -> Script:
    script = Script(export)
    script.inside("ncclGroupStart")
    script.inside("ncclAllReduce", message(5, COMM, 10))
    script.inside("ncclAllReduce", message(5, OTHER, 30))
    return script


def test_a_group_with_two_communicators_goes_by_their_order(tmp_path: Path) -> None:
    export = NsysExport()
    two_communicators(export).end(20, 21)
    rank = single(export, tmp_path)
    assert [(row["group"], row["bytes_sent"]) for row in rows(rank)] == [
        (nccl_nvtx.communicator_name(OTHER), 30),
        (nccl_nvtx.communicator_name(COMM), 10),
    ]


def test_a_group_with_two_communicators_goes_by_known_streams_first(tmp_path: Path) -> None:
    export = NsysExport()
    script = two_communicators(export)
    script.end(20, 21)
    for communicator, stream in ((COMM, 20), (OTHER, 21)):
        script.inside("ncclGroupStart")
        script.inside("ncclAllReduce", message(5, communicator, 1))
        script.end(stream)
    rank = single(export, tmp_path)
    assert [(row["group"], row["bytes_sent"]) for row in rows(rank)][:2] == [
        (nccl_nvtx.communicator_name(COMM), 10),
        (nccl_nvtx.communicator_name(OTHER), 30),
    ]


def test_without_payloads_the_names_still_tell_the_kind(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.one("ncclAlltoAll")
    script.group({0: (1, 1)}, blobs=False)
    script.group({0: (1, 1), 1: (1, 1)}, blobs=False)
    script.group({0: (1, 1), 1: (1, 1), 2: (1, 1)}, blobs=False)
    loaded = load(export, tmp_path)
    (rank,) = loaded.ranks
    assert brief(rank) == [
        ("ALL_TO_ALL", NONE, NONE, NONE),
        ("SEND_RECV", NONE, NONE, NONE),
        ("UNKNOWN", NONE, NONE, NONE),
        ("ALL_TO_ALL", NONE, NONE, NONE),
    ]
    assert {row["group"] for row in rows(rank)} == {""}
    (issue,) = [issue for issue in loaded.issues if issue.id == "nccl-payload-missing"]
    assert issue.count == 13
    assert "--include-blobs=true" in issue.message


def test_garbage_payloads_are_no_payloads(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    for blob in (b"x", b"\xff" * 48, message(16, COMM, 1)[:40], message(5, COMM, 2**63)):
        script.one("ncclAllReduce", blob)
    assert {row[1] for row in brief(single(export, tmp_path))} == {NONE}


def test_payload_offsets_of_the_export_win(tmp_path: Path) -> None:
    export = NsysExport()
    for index, (name, offset) in enumerate(
        (("Message size [bytes]", None), ("NCCL communicator ID", 8))
    ):
        export.add(
            "NVTX_PAYLOAD_SCHEMA_ENTRIES", domainId=1, schemaId=(1 << 24) + 5, idx=index,
            type=18, name=name, offset=offset,
        )  # fmt: skip
    Script(export).one("ncclAllReduce", message(5, 77, OTHER))
    (row,) = rows(single(export, tmp_path))
    assert (row["group"], row["bytes_sent"]) == (nccl_nvtx.communicator_name(OTHER), 77)


def test_copy_engine_collectives_are_copies_without_a_kernel(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.one("ncclAlltoAll", message(16, COMM, 64), kernels=0)
    for correlation, kind in ((1, 8), (2, 10), (3, 1)):
        export.call(1_010, 1_020, "cudaMemcpyAsync", correlation)
        export.copy(2_000, 2_100, correlation, copyKind=kind, bytes=64)
    rank = single(export, tmp_path)
    assert brief(rank) == [("ALL_TO_ALL", 64, NONE, NONE)] * 2
    kinds = rank.activities["copy_kind"].gather(rank.collectives["activity"].to_list())
    assert kinds.sort().to_list() == [8, 10]


def test_other_kernels_and_other_domains_are_no_collectives(tmp_path: Path) -> None:
    export = NsysExport()
    script = Script(export)
    script.launch(name="gemm")
    export.range(1_000, 90_000, "ncclAllReduce")  # the user's own range of this name
    rank = single(export, tmp_path)
    assert rank.collectives.height == 0
    assert rank.collectives.schema["in_splits"] == pl.List(pl.Int64)
