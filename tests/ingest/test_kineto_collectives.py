"""What is known of each communication kernel, with and without metadata on it."""

from pathlib import Path
from typing import Any

import pytest

from moe_advisor.ingest import kineto
from moe_advisor.ingest.kineto_collectives import collective_kind, element_bytes, nccl_kernel_kind
from moe_advisor.model import NONE, CollectiveKind
from tests.kineto_builder import annotation, call, collective, comms, kernel, trace, write

SEND_RECV_KERNEL = "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"


def rows(tmp_path: Path, *events: dict[str, Any], **meta: Any) -> list[dict[str, Any]]:
    """The collectives, with names in place of numbers."""
    rank = kineto.load(write(tmp_path, trace(*events, **meta))).ranks[0]
    return [
        {
            **row,
            "group": rank.names[row["group"]],
            "description": rank.names[row["description"]],
            "kernel": rank.names[rank.activities["name"][row["activity"]]],
        }
        for row in rank.collectives.iter_rows(named=True)
    ]


def one(tmp_path: Path, name: str, **changes: Any) -> dict[str, Any]:
    event = kernel(SEND_RECV_KERNEL, 10, 5, **collective(name, **changes))
    (row,) = rows(tmp_path, event)
    return row


def test_an_all_to_all_has_its_bytes_splits_and_own_share(tmp_path: Path) -> None:
    row = one(tmp_path, "all_to_allv")  # the trace is of rank 1: 20 of 50 rows stay
    assert row == {
        "activity": 0,
        "kind": CollectiveKind.ALL_TO_ALL,
        "group": "1|[0, 1]",
        "description": "EXPERT_MODEL_PARALLEL_GROUP",
        "group_size": 2,
        "bytes_sent": 200,
        "bytes_received": 120,
        "bytes_self": 80,
        "in_splits": [30, 20],
        "out_splits": [10, 20],
        "sequence": NONE,
        "place": NONE,
        "to_low": NONE,
        "to_high": NONE,
        "from_low": NONE,
        "from_high": NONE,
        "kernel": SEND_RECV_KERNEL,
    }


def test_a_collective_keeps_the_number_that_all_ranks_give_it(tmp_path: Path) -> None:
    assert one(tmp_path, "allreduce", Seq=41)["sequence"] == 41


def test_equal_shares_are_written_as_an_empty_list(tmp_path: Path) -> None:
    row = one(tmp_path, "all_to_allv", **{"In split size": "[]", "Out split size": "[]"})
    assert (row["bytes_self"], row["in_splits"]) == (100, [])


def test_shortened_splits_tell_nothing(tmp_path: Path) -> None:
    row = one(tmp_path, "all_to_allv", **{"In split size": "[1, 2, ...]"})
    assert (row["bytes_self"], row["in_splits"], row["out_splits"]) == (NONE, [], [10, 20])


def test_a_rank_outside_the_listed_group_has_no_known_share(tmp_path: Path) -> None:
    changes = {"Process Group Ranks": "[4, 6]", "Process Group Name": "9"}
    assert one(tmp_path, "all_to_allv", **changes)["bytes_self"] == NONE


def test_a_shortened_list_of_ranks_is_completed_from_the_metadata(tmp_path: Path) -> None:
    changes = {"Process Group Ranks": "[0, ...]", "Process Group Name": "1"}
    row = one(tmp_path, "all_to_allv", **changes)
    assert (row["group"], row["bytes_self"]) == ("1|[0, ...]", 80)


def test_numbers_given_as_text_and_lists_as_lists_mean_the_same(tmp_path: Path) -> None:
    plain = one(tmp_path, "all_to_allv")
    changes = {
        "In msg nelems": "100",
        "Group size": "2",
        "In split size": [30, 20],
        "Process Group Ranks": [0, 1],
        "Process Group Name": 1,
    }
    assert one(tmp_path, "all_to_allv", **changes) == plain


def test_element_counts_have_an_older_name(tmp_path: Path) -> None:
    args = collective("allreduce", **{"In msg size": 7, "Out msg size": 7, "dtype": "Float"})
    del args["In msg nelems"], args["Out msg nelems"]
    (row,) = rows(tmp_path, kernel("ncclKernel_AllReduce", 1, 1, **args))
    assert (row["bytes_sent"], row["bytes_received"]) == (28, 28)


def test_an_unknown_element_type_has_no_bytes(tmp_path: Path) -> None:
    row = one(tmp_path, "all_to_allv", dtype="Quaternion")
    assert (row["bytes_sent"], row["bytes_received"], row["bytes_self"]) == (NONE, NONE, NONE)


@pytest.mark.parametrize(("name", "sent", "received"), [("send", 200, 0), ("recv", 0, 200)])
def test_a_point_to_point_call_moves_bytes_one_way(
    tmp_path: Path, name: str, sent: int, received: int
) -> None:
    row = one(tmp_path, name)
    assert row["kind"] == CollectiveKind.SEND_RECV
    assert (row["bytes_sent"], row["bytes_received"], row["bytes_self"]) == (sent, received, 0)


def test_a_description_of_undefined_is_none(tmp_path: Path) -> None:
    assert (
        one(tmp_path, "allreduce", **{"Process Group Description": "undefined"})["description"]
        == ""
    )


def test_a_wait_is_no_collective(tmp_path: Path) -> None:
    assert rows(tmp_path, kernel("k", 1, 1, **collective("wait"))) == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("all_to_allv", CollectiveKind.ALL_TO_ALL),
        ("all_to_all", CollectiveKind.ALL_TO_ALL),
        ("allreduce", CollectiveKind.ALL_REDUCE),
        ("allreduce_coalesced", CollectiveKind.ALL_REDUCE),
        ("_allgather_base", CollectiveKind.ALL_GATHER),
        ("all_gather", CollectiveKind.ALL_GATHER),
        ("all_gather_into_tensor_coalesced", CollectiveKind.ALL_GATHER),
        ("_reduce_scatter_base", CollectiveKind.REDUCE_SCATTER),
        ("reduce_scatter", CollectiveKind.REDUCE_SCATTER),
        ("broadcast", CollectiveKind.BROADCAST),
        ("reduce", CollectiveKind.REDUCE),
        ("send", CollectiveKind.SEND_RECV),
        ("recv", CollectiveKind.SEND_RECV),
        ("barrier", CollectiveKind.BARRIER),
        ("gather", CollectiveKind.GATHER),
        ("scatter", CollectiveKind.SCATTER),
        ("wait", CollectiveKind.UNKNOWN),
        ("", CollectiveKind.UNKNOWN),
    ],
)
def test_kinds_of_the_names_torch_uses(name: str, kind: CollectiveKind) -> None:
    assert collective_kind(name) == kind


def test_the_name_of_a_send_recv_kernel_does_not_tell_its_kind() -> None:
    assert nccl_kernel_kind(SEND_RECV_KERNEL) == CollectiveKind.UNKNOWN
    assert nccl_kernel_kind("ncclDevKernel_AllGather_RING_LL(x)") == CollectiveKind.ALL_GATHER
    assert (
        nccl_kernel_kind("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)")
        == CollectiveKind.REDUCE_SCATTER
    )


@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        ("BFloat16", 2), ("Float", 4), ("Byte", 1), ("Long", 8), ("Float8_e4m3fn", 1),
        ("c10::BFloat16", 2), ("torch.float32", 4), ("Double", 8), ("Bool", 1), ("", NONE),
    ],
)  # fmt: skip
def test_sizes_of_element_types(dtype: str, size: int) -> None:
    assert element_bytes(dtype) == size


PIPELINE = {
    "Process Group Name": "5",
    "Process Group Description": "PIPELINE_MODEL_PARALLEL_GROUP",
    "Process Group Ranks": "[0, 1]",
}


def test_coalesced_sends_are_recovered_from_the_host_range_around_the_launch(
    tmp_path: Path,
) -> None:
    (row,) = rows(
        tmp_path,
        annotation("nccl:coalesced", 10, 50),
        comms(12, 2, **collective("send", **PIPELINE)),
        comms(16, 2, **collective("recv", **PIPELINE)),
        call(40, 5, 1),
        kernel(SEND_RECV_KERNEL, 60, 9, 1),
    )
    assert row["kind"] == CollectiveKind.SEND_RECV
    assert (row["group"], row["description"]) == ("5|[0, 1]", "PIPELINE_MODEL_PARALLEL_GROUP")
    assert (row["bytes_sent"], row["bytes_received"], row["bytes_self"]) == (200, 200, 0)


def test_a_batch_collects_its_sends_and_receives_before_the_range_that_launches_them(
    tmp_path: Path,
) -> None:
    """As torch writes them: the range holds the launch alone."""
    four = {**PIPELINE, "Process Group Ranks": "[0, 1, 2, 3]", "Group size": 4}
    to_next = {**collective("send", **four), "Dst Rank": 2}
    from_last = {**collective("recv", **four), "Src Rank": 0}
    got = rows(
        tmp_path,
        comms(2, 2, **to_next),
        comms(5, 2, **from_last),
        annotation("nccl:coalesced", 10, 50),
        call(40, 5, 1),
        kernel(SEND_RECV_KERNEL, 60, 9, 1),
        comms(110, 2, **collective("wait")),
        comms(120, 2, **{**to_next, "Dst Rank": 0}),
        annotation("nccl:coalesced", 130, 50),
        call(140, 5, 2),
        kernel(SEND_RECV_KERNEL, 160, 9, 2),
    )
    assert [row["kind"] for row in got] == [CollectiveKind.SEND_RECV] * 2
    assert [(row["bytes_sent"], row["bytes_received"]) for row in got] == [(200, 200), (200, 0)]
    assert [row["place"] for row in got] == [1, 1]
    assert [(row["to_low"], row["to_high"], row["from_low"]) for row in got] == [
        (2, 2, 0),
        (0, 0, NONE),
    ]


def test_calls_outside_the_range_or_on_another_thread_do_not_count(tmp_path: Path) -> None:
    (row,) = rows(
        tmp_path,
        comms(2, 2, **collective("send", **PIPELINE)),
        annotation("nccl:coalesced", 10, 50),
        comms(12, 2, **collective("recv", **PIPELINE)),
        comms(14, 2, tid=999, **collective("send", **PIPELINE)),
        comms(20, 2, **collective("wait", **PIPELINE)),
        call(40, 5, 1),
        kernel(SEND_RECV_KERNEL, 60, 9, 1),
    )
    assert (row["bytes_sent"], row["bytes_received"]) == (0, 200)


def test_kernels_that_share_a_coalesced_range_do_not_share_its_bytes(tmp_path: Path) -> None:
    got = rows(
        tmp_path,
        annotation("nccl:coalesced", 10, 50),
        comms(12, 2, **collective("_reduce_scatter_base")),
        comms(16, 2, **collective("_reduce_scatter_base")),
        call(40, 1, 1),
        call(42, 1, 2),
        kernel("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)", 60, 9, 1),
        kernel("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)", 70, 9, 2),
    )
    assert [row["kind"] for row in got] == [CollectiveKind.REDUCE_SCATTER] * 2
    assert [row["bytes_sent"] for row in got] == [NONE, NONE]
    assert [row["group"] for row in got] == ["1|[0, 1]"] * 2


def test_the_other_kernels_of_a_stream_tell_the_group(tmp_path: Path) -> None:
    got = rows(
        tmp_path,
        kernel(SEND_RECV_KERNEL, 10, 5, stream=25, **collective("send", **PIPELINE)),
        kernel(SEND_RECV_KERNEL, 20, 5, stream=25),
        kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 30, 5, stream=25),
    )
    assert [row["group"] for row in got] == ["5|[0, 1]"] * 3
    assert [row["kind"] for row in got] == [
        CollectiveKind.SEND_RECV,
        CollectiveKind.SEND_RECV,
        CollectiveKind.ALL_REDUCE,
    ]
    assert got[1]["bytes_sent"] == NONE


def test_a_stream_of_two_groups_tells_none(tmp_path: Path) -> None:
    got = rows(
        tmp_path,
        kernel(SEND_RECV_KERNEL, 10, 5, **collective("send", **PIPELINE)),
        kernel(SEND_RECV_KERNEL, 20, 5, **collective("all_to_allv")),
        kernel(SEND_RECV_KERNEL, 30, 5),
    )
    assert (got[2]["group"], got[2]["kind"]) == ("", CollectiveKind.UNKNOWN)


def test_a_stream_that_computes_too_tells_no_group(tmp_path: Path) -> None:
    gather = "ncclDevKernel_AllGather_RING_LL(x)"  # a CUDA graph's, say, beside synchronous ones
    got = rows(
        tmp_path,
        kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 10, 5, **collective("allreduce")),
        kernel("elementwise", 20, 5),
        kernel(gather, 30, 5),
    )
    assert [(row["group"], row["kind"]) for row in got] == [
        ("1|[0, 1]", CollectiveKind.ALL_REDUCE),
        ("", CollectiveKind.ALL_GATHER),
    ]


def test_kernels_of_nccls_expert_library_are_no_collectives_of_a_group(tmp_path: Path) -> None:
    got = rows(
        tmp_path,
        kernel("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 10, 5, **collective("allreduce")),
        kernel("nccl_ep_jit_ht_dispatch_kernel", 20, 5),
    )
    assert [row["kind"] for row in got] == [CollectiveKind.ALL_REDUCE]
