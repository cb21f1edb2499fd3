"""Each change on the smallest step that shows what it does; times in µs."""

import numpy as np
import pytest

from moe_advisor.roles.roles import Role
from moe_advisor.whatif import CHANGES, combine
from moe_advisor.whatif.blocks import find_blocks
from moe_advisor.whatif.changes.contention import contended
from moe_advisor.whatif.changes.edit import Ask, Case, Context, NotApplicableError, select
from moe_advisor.whatif.model import StepModel
from moe_advisor.whatif.replay import replay
from tests.whatif.steps import US, Step, model

EXPECTED = Case.EXPECTED


def apply(one: StepModel, name: str, value: str | None = None, case: Case = EXPECTED, **known):
    return CHANGES[name].apply(one, Ask(value, case, Context(known)))


def step_us(one: StepModel) -> float:
    return replay(one).mean_step_ns / US


def layer(s: Step, *, wire: float = 100, experts: float = 80, backward: bool = False) -> None:
    """One pass through an MoE layer: permute, dispatch, experts, combine, unpermute."""
    s.item(40, Role.PERMUTE, backward=backward)
    s.item(wire, Role.EP_DISPATCH, blocks=32, backward=backward, sent=80_000_000, own=40_000_000)
    s.item(20, Role.PERMUTE, backward=backward)
    s.item(experts, Role.EXPERT_GEMM, blocks=132, backward=backward)
    s.item(wire, Role.EP_COMBINE, blocks=32, backward=backward, sent=80_000_000, own=40_000_000)
    s.item(60, Role.PERMUTE, backward=backward)
    s.item(100, Role.DENSE_GEMM, blocks=132, backward=backward)


def layers(number: int = 1, **options) -> Step:
    s = Step()
    for _ in range(number):
        layer(s, **options)
    return s


def test_moe_layers_are_found_between_dispatch_and_combine() -> None:
    lane = layers(2).lane(1)
    found = find_blocks(lane.items)
    assert [(b.begin, b.first, b.inside, b.second, b.after, b.end) for b in found] == [
        (0, 1, 2, 4, 5, 6),
        (7, 8, 9, 11, 12, 13),
    ]


def test_chunked_overlap_hides_wire_behind_work_of_the_other_half() -> None:
    before = model(layers().lane(500))
    assert step_us(before) == 500
    after = apply(before, "ep-overlap", "chunked", Case.HIGH)
    # Both halves of the wire run; permuting the second half hides a part of the first's.
    assert 400 < step_us(after) < 500
    work = sum(int(lane.items.transfer_ns[1]) for lane in after.lanes)
    assert work == (10 + 45) * US  # half the payload, the whole fixed cost


def test_chunks_keep_what_does_not_get_shorter_with_fewer_tokens() -> None:
    s = layers()
    s.rows[0]["blocks"] = 8  # does not fill the GPU: half the rows take as long
    after = apply(model(s.lane(500)), "ep-overlap", "chunked").lanes[0].items
    permutes = after.duration_ns[after.role == Role.PERMUTE].tolist()
    assert permutes[:2] == [40 * US, 40 * US]
    gemms = after.duration_ns[after.role == Role.EXPERT_GEMM].tolist()
    assert gemms == [50 * US, 50 * US]  # half, and the tail of the last tiles


def test_a_gemm_of_one_wave_loses_a_wave_beside_communication() -> None:
    before = model(layers(wire=500).lane(1))
    after = apply(before, "ep-overlap", "chunked", Case.HIGH)
    timing = replay(after)
    slowed = contended(before, after, timing.start_ns, timing.end_ns, Case.HIGH).lanes[0].items
    gemms = slowed.role == Role.EXPERT_GEMM
    plain = after.lanes[0].items.duration_ns[gemms]
    assert slowed.duration_ns[gemms][0] == 2 * plain[0]  # wholly beside the second half's wire
    permutes = slowed.role == Role.PERMUTE
    assert (slowed.duration_ns[permutes] == after.lanes[0].items.duration_ns[permutes]).all()


def micro_batches(count: int) -> Step:
    s = Step()
    for _ in range(count):
        layer(s)
        layer(s, backward=True)
    return s


def test_merged_micro_batches_leave_the_first_forward_and_the_last_backward_exposed() -> None:
    before = model(micro_batches(4).lane(4_000))
    assert step_us(before) == 4_000
    after = apply(before, "ep-overlap", "1f1b", Case.HIGH)
    # 16 transfers of 100 µs, of which 4 stay exposed: 12 are hidden behind the other pass.
    assert step_us(after) == 4_000 - 1_200


def test_too_few_micro_batches_withhold_the_merged_schedule() -> None:
    with pytest.raises(NotApplicableError, match="2 micro-batches"):
        apply(model(micro_batches(2).lane(2_000)), "ep-overlap", "1f1b")


def test_the_wire_bounds_what_merging_can_gain() -> None:
    s = Step()
    for _ in range(4):
        layer(s, wire=1_000)
        layer(s, wire=1_000, backward=True)
    before = model(s.lane(18_400))
    assert step_us(before) == 18_400
    assert step_us(apply(before, "ep-overlap", "1f1b", Case.HIGH)) > 16_000


def test_memory_for_the_second_micro_batch_is_checked() -> None:
    before = model(micro_batches(4).lane(4_000))
    full = Context({}, {"memory_headroom_gib": 2.0, "memory_peak_gib": 130.0})
    with pytest.raises(NotApplicableError, match=r"2\.0 GiB of headroom"):
        CHANGES["ep-overlap"].apply(before, Ask("1f1b", EXPECTED, full))


def test_dropping_recompute_drops_its_items_and_their_host_time() -> None:
    s = Step()
    s.item(50)
    s.item(30, host=20, recompute=True)
    s.item(40, Role.ATTENTION, host=20, recompute=True)
    s.item(50)
    before = model(s.lane(170))
    assert step_us(before) == 170
    assert step_us(apply(before, "recompute")) == 100
    assert step_us(apply(before, "recompute", "selective")) == 140


def test_recompute_needs_room_for_the_activations() -> None:
    s = Step()
    s.item(30, recompute=True)
    tight = Context({}, {"memory_headroom_gib": 5.0, "memory_peak_gib": 70.0})
    with pytest.raises(NotApplicableError, match=r"5\.0 GiB of headroom"):
        CHANGES["recompute"].apply(model(s.lane(30)), Ask(None, EXPECTED, tight))


def test_what_depended_on_a_dropped_item_depends_on_what_was_before_it() -> None:
    s = Step()
    s.item(50, stream=1)
    gone = s.item(30, stream=1)
    s.item(10, after=gone)
    lane = s.lane(90)
    kept = select(lane, np.asarray([True, False, True, True]))
    assert replay(model(kept)).step_ns == (60 * US,)


def test_graphs_take_the_launch_gaps_inside_their_scope() -> None:
    s = Step()
    for _ in range(20):
        s.item(5, Role.ATTENTION, host=30)
    s.item(5, Role.NORM, host=200)
    before = model(s.lane(805))
    assert step_us(before) == 805
    low = step_us(apply(before, "cuda-graphs", "attn", Case.LOW))
    high = step_us(apply(before, "cuda-graphs", "attn", Case.HIGH))
    assert high < low < 400
    assert high >= 5 + 200 + 5  # the launch outside the scope keeps its time


def test_graphs_gain_nothing_where_the_gpu_is_the_limit() -> None:
    s = Step()
    for _ in range(20):
        s.item(50, Role.ATTENTION, host=3)
    before = model(s.lane(1_003))
    gain = step_us(before) - step_us(apply(before, "cuda-graphs", "attn"))
    assert abs(gain) <= 3


def sequential(experts: int) -> Step:
    s = Step()
    s.item(20, Role.EP_DISPATCH)
    for _ in range(experts):
        for role in (Role.EXPERT_GEMM, Role.ACTIVATION, Role.EXPERT_GEMM):
            s.item(6, role, host=10, blocks=33)
    s.item(20, Role.EP_COMBINE)
    return s


def test_grouped_gemm_replaces_the_loop_over_experts() -> None:
    before = model(sequential(16).lane(520))
    after = apply(before, "grouped-gemm")
    assert int(after.lanes[0].items.has_role(Role.EXPERT_GEMM).sum()) == 2
    assert int(after.lanes[0].items.has_role(Role.ACTIVATION).sum()) == 1
    assert step_us(after) < 0.5 * step_us(before)


def test_three_gemms_per_layer_are_no_loop() -> None:
    with pytest.raises(NotApplicableError, match="no MoE layer launches one GEMM per expert"):
        apply(model(sequential(2).lane(100)), "grouped-gemm")


def test_host_waits_pauses_and_allocations_go() -> None:
    s = Step()
    long = s.item(100)
    s.wait(long)
    s.item(100, host=60)
    s.rows[-1]["alloc_ns"] = 50 * US
    before = model(s.lane(260))
    assert step_us(before) == 260
    assert step_us(apply(before, "host-syncs")) == 200


def test_balanced_experts_share_the_work_of_the_fullest_rank() -> None:
    full, empty = Step(), Step()
    for s, work in ((full, 402), (empty, 2)):
        s.item(10, Role.EP_DISPATCH, collective=0)
        s.item(work, Role.EXPERT_GEMM)
        s.item(10 + 402 - work, Role.EP_COMBINE, collective=1, transfer=10)
    before = model(full.lane(422), empty.lane(422, rank=1), collectives=2)
    assert step_us(before) == 422
    assert step_us(apply(before, "balanced-experts")) == 222


def test_a_faster_link_shortens_transfers_down_to_their_fixed_cost() -> None:
    s = Step()
    s.item(110, Role.EP_DISPATCH, collective=0, transfer=110)
    other = Step()
    other.item(110, Role.EP_DISPATCH, collective=0, transfer=110)
    before = model(s.lane(110), other.lane(110, rank=1), collectives=1)
    assert step_us(apply(before, "link", "4")) == 10 + 25


def test_a_dispatch_library_sends_one_copy_per_rank_and_permutes_once() -> None:
    before = model(layers(wire=2_000).lane(4_300))
    after = apply(before, "dispatcher", None, Case.HIGH, moe_router_topk=8)
    items = after.lanes[0].items
    inside = items.duration_ns[2]
    assert inside == 0  # the cheaper permutation, here the one on the expert side
    # 10 MB per copy leave; the link reached 40 MB in 2 ms, so one copy takes 0.5 ms and a bit. At
    # 20 GB/s this is a slow link, where at best nine tenths of the bytes saved become time.
    assert items.transfer_ns[1] == pytest.approx((0.9 * 510 + 0.1 * 2_000) * US, rel=0.02)


def test_permutation_falls_towards_what_its_bytes_take() -> None:
    s = layers()
    for row in s.rows:
        if row["role"] == Role.PERMUTE:
            row["duration_ns"] *= 10
    after = apply(model(s.lane(1_580)), "permute-fusion").lanes[0].items
    # 160 MB sent, four passes over memory at 0.9 × 4,800 GB/s, half as much again.
    floor_us = 4 * 160e6 / (0.9 * 4_800e9) * 1e6
    total = after.duration_ns[after.role == Role.PERMUTE].sum() / US
    assert total == pytest.approx(1.5 * floor_us, rel=0.001)


def test_every_change_refuses_a_step_that_has_nothing_of_it() -> None:
    s = Step()
    s.item(100, Role.DENSE_GEMM)
    plain = model(s.lane(100))
    for name in CHANGES:
        found = combine(plain, (name,))
        assert found.status == "not_measured", name
        assert found.reason, name


def test_no_steps_no_estimate() -> None:
    assert combine(model(), ("link",)).reason == "no training step in the trace"


def test_an_unknown_change_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        combine(model(), ("warp-drive",))
