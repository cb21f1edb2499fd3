"""Each change on the smallest step that shows what it does; times in µs."""

from dataclasses import replace

import numpy as np
import pytest

from moe_advisor.roles.roles import Role
from moe_advisor.whatif import CHANGES, calibrate, combine
from moe_advisor.whatif.blocks import find_blocks
from moe_advisor.whatif.changes.contention import contended
from moe_advisor.whatif.changes.edit import Ask, Case, Context, NotApplicableError, select
from moe_advisor.whatif.changes.merged import merged, pairs_of
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


def slowed_beside_the_wire(name: str) -> tuple[float, float]:
    """Expert GEMM and permutation beside a long wire over the same alone, GEMMs called `name`."""
    before = replace(model(layers(wire=500).lane(1)), names=(name,))
    after = apply(before, "ep-overlap", "chunked", Case.HIGH)
    timing = replay(after)
    slowed = contended(before, after, timing.start_ns, timing.end_ns, Case.HIGH).lanes[0].items
    plain = after.lanes[0].items
    gemm, permute = (
        np.flatnonzero(slowed.role == role)[0] for role in (Role.EXPERT_GEMM, Role.PERMUTE)
    )
    ratio = slowed.duration_ns / np.maximum(plain.duration_ns, 1)
    return round(float(ratio[gemm]), 2), round(float(ratio[permute]), 2)


def test_a_gemm_whose_tiles_are_dealt_out_loses_a_wave_to_the_first_sm_that_is_taken() -> None:
    # It is wholly beside the second half's wire, which holds 32 of 132 SMs; what is left over runs
    # nearly alone and takes 0.68 times as long at best.
    assert slowed_beside_the_wire("void cutlass::device_kernel<...>") == (1.68, 1.0)
    assert slowed_beside_the_wire("_ZN7cutlass13device_kernelIN2at4cuda") == (1.68, 1.0)


def test_a_gemm_that_has_its_sms_before_the_wire_comes_keeps_its_time() -> None:
    before = replace(model(layers(wire=500).lane(1)), names=("cutlass::device_kernel",))
    s = Step()
    s.item(100, Role.EXPERT_GEMM, blocks=132)
    s.item(200, Role.EP_DISPATCH, stream=1, blocks=32, host=50)
    s.item(100, Role.EXPERT_GEMM, blocks=132)
    after = replace(model(s.lane(300)), names=before.names)
    timing = replay(after)
    assert timing.start_ns[0].tolist() == [0, 50 * US, 100 * US, 200 * US]
    slowed = contended(before, after, timing.start_ns, timing.end_ns, EXPECTED).lanes[0].items
    assert slowed.duration_ns[[0, 2]].tolist() == [100 * US, 174_500]


def test_a_gemm_whose_tiles_go_to_whoever_is_free_loses_the_share_of_sms_that_is_taken() -> None:
    assert slowed_beside_the_wire("nvjet_sm90_tst_128x256_64x4") == (1.32, 1.0)


def test_the_wire_takes_longer_beside_compute() -> None:
    before = model(layers(wire=500, experts=2_000).lane(1))
    after = apply(before, "ep-overlap", "chunked", Case.HIGH)
    timing = replay(after)
    slowed = contended(before, after, timing.start_ns, timing.end_ns, Case.HIGH).lanes[0].items
    wire = np.flatnonzero(slowed.has_role(Role.EP_DISPATCH, Role.EP_COMBINE))
    longer = slowed.transfer_ns[wire] / after.lanes[0].items.transfer_ns[wire]
    # The second half's dispatch runs beside the first half's experts, its combine alone.
    assert longer[1] == pytest.approx(1 + calibrate.WIRE_BESIDE_COMPUTE[Case.HIGH], abs=0.001)
    assert longer[3] == 1


@pytest.mark.parametrize(("blocks", "waits"), [(132, 35), (1_320, 48.5), (131, 0)])
def test_a_wire_that_is_ready_beside_a_full_gpu_starts_in_the_tail_of_what_fills_it(
    blocks: int, waits: float
) -> None:
    before = model(layers().lane(500))
    s = Step()
    s.item(100, Role.EXPERT_GEMM, blocks=blocks)
    s.item(20, Role.EP_DISPATCH, stream=1, blocks=32, host=50)
    after = model(s.lane(100))
    found, delay = after, [np.zeros(3, np.int64)]
    for _ in range(2):  # a second look, from the delayed start, finds the same
        timing = replay(found)
        found = contended(before, after, timing.start_ns, timing.end_ns, EXPECTED, delay)
        delay = [found.lanes[0].items.residual_ns]
        assert delay[0].tolist() == [0, waits * US, 0]


def test_two_streams_of_compute_share_one_gpu() -> None:
    before = model(micro_batches(4).lane(4_000))
    after = apply(before, "ep-overlap", "1f1b")
    timing = replay(after)
    slowed = contended(before, after, timing.start_ns, timing.end_ns, EXPECTED)
    items = slowed.lanes[0].items
    side = int(before.lanes[0].items.stream.max()) + 1
    aside = (items.stream >= side) & items.has_role(Role.PERMUTE)
    longer = items.duration_ns[aside] > after.lanes[0].items.duration_ns[aside]
    assert longer.any()


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
    # First forward and last backward as before (500 each). A pair is bound by the communication
    # stream: four transfers of 100 µs, 40 µs of permutation before the first, 60 after the last;
    # the GEMM behind the last layer of a forward follows.
    assert step_us(after) == 500 + 3 * 600 + 500


def test_merged_layers_are_launched_in_megatrons_order() -> None:
    before = model(micro_batches(3).lane(3_000))
    lane = apply(before, "ep-overlap", "1f1b").lanes[0]
    roles, backward = lane.items.role, lane.items.backward
    named = {
        Role.EP_DISPATCH: "dispatch",
        Role.EP_COMBINE: "combine",
        Role.EXPERT_GEMM: "experts",
        Role.DENSE_GEMM: "attention",
    }
    order = [
        (named[Role(role)], "backward" if back else "forward")
        for role, back in zip(roles.tolist(), backward.tolist(), strict=True)
        if role in named
    ]
    # In this step the first collective of a block is called dispatch in both directions.
    assert order[4:12] == [
        ("dispatch", "backward"),
        ("experts", "backward"),
        ("dispatch", "forward"),
        ("combine", "backward"),
        ("experts", "forward"),
        ("combine", "forward"),
        ("attention", "backward"),
        ("attention", "forward"),
    ]
    ep = lane.items.has_role(Role.EP_DISPATCH, Role.EP_COMBINE)
    assert len(np.unique(lane.items.stream[4:][ep[4:]])) == 2  # alone, and beside compute


def test_with_a_pipeline_all_of_warm_up_and_cool_down_stay_exposed() -> None:
    s = Step()
    for backward in (False, False, False, True, False, True, False, True, True, True):
        layer(s, backward=backward)
    before = model(s.lane(5_000))
    lane = before.lanes[0]
    pairs = pairs_of(lane.items, find_blocks(lane.items))
    of_layer = [(pair.begin // 7, pair.end // 7) for pair in pairs]
    assert of_layer == [(3, 5), (5, 7)]  # backward 1 with forward 4, backward 2 with forward 5


def test_merging_costs_host_time_in_the_layers_only() -> None:
    s = Step()
    s.item(10, Role.EMBEDDING_LOSS, host=100)
    for _ in range(3):
        layer(s)
        layer(s, backward=True)
    for row in s.rows[1:]:
        row["host_ns"] = 100 * US
    s.item(10, Role.OPTIMIZER, host=100)
    lane = s.lane(1)
    # Six blocks of 4.5 hand-overs, 38 µs each, make 1,026 µs on 41 launches of 100 µs.
    after = merged(lane, find_blocks(lane.items), 38 * US)
    assert int(after.items.host_ns[0]) == 100 * US
    assert int(after.items.host_ns.sum()) == pytest.approx((100 * 44 + 1_026) * US, abs=100)
    # A trace without launch calls can't cost more host time than it shows.
    huge = merged(lane, find_blocks(lane.items), 1_000_000 * US)
    assert int(huge.items.host_ns.sum()) == pytest.approx((100 * 44 + 100 * 41) * US, abs=100)
    # It stands where a node of the schedule begins; what a node launches next keeps its time.
    assert sorted(set(after.items.host_ns.tolist())) == [0, 100 * US, 100 * US + 1_026 * US // 27]


def test_a_profilers_stretch_does_not_apply_to_hand_overs() -> None:
    s = Step()
    for _ in range(4):
        layer(s)
        layer(s, backward=True)
    for row in s.rows:
        row["host_ns"] = 1_000 * US
    before = model(s.lane(60_000))

    def extra_ms(scale: float) -> float:
        asked = Ask("1f1b", EXPECTED, Context(), scale)
        after = CHANGES["ep-overlap"].apply(before, asked).lanes[0].items.host_ns
        return scale * float(after.sum() - before.lanes[0].items.host_ns.sum()) / 1e6

    assert extra_ms(1.0) == pytest.approx(8 * 4.5 * 0.22, rel=1e-3)
    assert extra_ms(0.5) == pytest.approx(extra_ms(1.0), rel=1e-3)


def test_host_gains_count_less_where_the_profiler_recorded_operators() -> None:
    s = Step()
    for _ in range(2):
        s.item(10, host=1_000)
        s.wait(len(s.rows) - 1, before=1_000, own=5_000)
    s.item(10, host=1_000)
    lane = s.lane(15_030)

    def basis(**facts: object) -> str:
        found = combine(model(lane, **facts), ("host-syncs",))
        return found.basis or ""

    assert "stretched 1.07 to 2.51 times" in basis()
    assert "stretched 1.52 to 3.23 times" in basis(operators=True)
    # Where nested operators show how long recording takes, the trace itself tells.
    assert "stretched 1.27 to 1.8 times" in basis(operators=True, recorded_share=0.1)
    assert "stretched 4.0 to 4.0 times" in basis(operators=True, recorded_share=0.9)


def test_a_gain_is_its_share_of_the_step_without_a_profiler_in_ms_of_the_traced_one() -> None:
    s = Step()
    for _ in range(2):
        s.item(10, host=1_000)
        s.wait(len(s.rows) - 1, before=1_000, own=5_000)
    s.item(10, host=1_000)
    one = model(s.lane(15_030))
    traced = replay(one).mean_step_ns / 1e6
    found = combine(one, ("host-syncs",), unprofiled_step_ms=traced / 2)
    # Half the host work, less a wait that no profiler stretches: what goes is a larger share.
    whole = combine(one, ("host-syncs",), unprofiled_step_ms=traced)
    assert found.expected_ms is not None
    assert whole.expected_ms is not None
    assert whole.expected_ms / traced < found.expected_ms / traced < 1


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
    # Per pair four transfers and 100 µs of permutation on one stream, and the GEMM behind them.
    assert step_us(apply(before, "ep-overlap", "1f1b", Case.HIGH)) == 2_300 + 3 * 4_200 + 2_300


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


def full_recompute() -> Step:
    """A layer that runs again: unfused attention (product, mask, softmax), norm, activation."""
    s = Step()
    s.item(50)
    s.item(1, Role.NORM, recompute=True)
    s.item(20, Role.ATTENTION, recompute=True)
    s.item(4, Role.ELEMENTWISE, recompute=True)
    s.item(20, Role.ATTENTION, recompute=True)
    s.item(8, Role.EXPERT_GEMM, recompute=True)
    s.item(2, Role.ACTIVATION, recompute=True)
    s.item(50)
    return s


@pytest.mark.parametrize(
    ("value", "left_us"),
    [
        (None, 0),
        ("core_attn", 44),
        ("selective", 44),
        ("moe_act", 2),
        ("core_attn,moe_act", 46),
        ("layernorm", 1),
    ],
)
def test_recompute_of_some_modules_keeps_only_theirs(value: str | None, left_us: float) -> None:
    before = model(full_recompute().lane(155))
    assert step_us(before) == 155
    assert step_us(apply(before, "recompute", value)) == 100 + left_us


def test_unknown_modules_of_recompute_are_named_with_the_known_ones() -> None:
    with pytest.raises(NotApplicableError, match=r"recompute=mlpp: .* core_attn, moe_act"):
        apply(model(full_recompute().lane(155)), "recompute", "mlpp")


def test_room_is_needed_in_proportion_to_what_is_no_longer_recomputed() -> None:
    before = model(full_recompute().lane(155))
    tight = Context({}, {"memory_headroom_gib": 9.0, "memory_peak_gib": 100.0})
    with pytest.raises(NotApplicableError, match=r"9\.0 GiB of headroom"):
        CHANGES["recompute"].apply(before, Ask(None, EXPECTED, tight))
    CHANGES["recompute"].apply(before, Ask("core_attn", EXPECTED, tight))  # 11 of 55 µs go


def test_graphs_need_room_for_their_buffers() -> None:
    tight = Context({}, {"memory_headroom_gib": 4.0, "memory_peak_gib": 130.0})
    with pytest.raises(NotApplicableError, match="the graphs' static buffers"):
        CHANGES["cuda-graphs"].apply(model(layers().lane(500)), Ask(None, EXPECTED, tight))


def stage(compute: float) -> Step:
    s = Step()
    s.item(100, Role.PP_P2P, stream=1)
    s.item(compute, recompute=True)
    s.item(50)
    return s


def test_with_a_pipeline_the_range_spans_the_stages() -> None:
    both = model(stage(40).lane(150), stage(10).lane(150, rank=1))
    found = combine(both, ("recompute",))
    assert found.low_ms is not None
    assert found.high_ms is not None
    assert found.low_ms <= 0.010 <= 0.040 <= found.high_ms
    assert "stages are replayed alone" in (found.basis or "")


def test_a_faster_link_leaves_a_pipelines_receives_as_they_are() -> None:
    with pytest.raises(NotApplicableError, match="of a pipeline are not scaled"):
        apply(model(stage(40).lane(150)), "link", "4")


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


def over(gbps: float, **facts) -> StepModel:
    """An all-to-all of 90 MB that leaves each rank at this rate, and an all-reduce of 1 ms."""
    lanes = []
    for rank in range(2):
        s = Step()
        time = 10 + 90e6 / gbps / 1e3  # the fixed cost and the rest
        s.item(time, Role.EP_DISPATCH, collective=0, sent=180_000_000, own=90_000_000)
        s.item(1_000, Role.DP_GRAD_REDUCE, collective=1, sent=10_000_000)
        lanes.append(s.lane(time + 1_000, rank=rank))
    return model(*lanes, collectives=2, **facts)


def test_a_link_as_fast_as_nvlink_follows_from_the_rate_of_the_trace() -> None:
    before = over(22.5)  # a twentieth of 450 GB/s; the all-reduce gets 10 GB/s
    for case, reach in zip(Case, calibrate.NVLINK_REACH, strict=True):
        after = apply(before, "link", None, case).lanes[0].items
        left = 0.05 / reach
        assert after.transfer_ns[0] == pytest.approx((10 + 4_000 * left) * US, rel=0.001)
        assert after.transfer_ns[1] == pytest.approx((10 + 990 * left) * US, rel=0.001)
    assert step_us(apply(before, "link", "nvlink")) == step_us(apply(before, "link"))


def test_only_the_expert_groups_move_where_another_group_spans_domains() -> None:
    after = apply(over(22.5, group_sizes={"dp": 16}), "link").lanes[0].items
    assert after.transfer_ns[0] < 500 * US
    assert after.transfer_ns[1] == 1_000 * US


def test_a_link_that_is_nvlink_or_unknown_gets_no_factor_of_its_own() -> None:
    with pytest.raises(NotApplicableError, match="move 200 GB/s of NVLink's 450: that is NVLink"):
        apply(over(200), "link")
    with pytest.raises(NotApplicableError, match=r"all ranks of a group; or say .*link=FACTOR"):
        apply(model(layers(wire=2_000).lane(4_300)), "link")
    with pytest.raises(NotApplicableError, match="figure for this GPU is not known"):
        apply(replace(over(22.5), hardware={}), "link")


def slow_layer(**facts) -> StepModel:
    lanes = []
    for rank in range(2):
        s = layers(wire=2_000)
        for number, row in enumerate(one for one in s.rows if one["bytes_sent"] > 0):
            row["collective"] = number
        lanes.append(s.lane(4_300, rank=rank))
    return model(*lanes, collectives=2, **facts)


def test_a_dispatch_library_without_peer_access_is_worth_what_it_brings_after_the_link() -> None:
    alone, link = combine(slow_layer(), ("dispatcher",)), combine(slow_layer(), ("link",))
    both = combine(slow_layer(), ("dispatcher", "link"))
    assert alone.expected_ms is None
    assert alone.low_ms == 0.0
    assert "20 of NVLink's 450 GB/s inside one NVLink domain" in (alone.basis or "")
    assert (both.expected_ms or 0.0) > (link.expected_ms or 0.0)
    # Not more than its bound on top of the link's gain, and nothing at all without the link.
    assert (both.expected_ms or 0.0) - (link.expected_ms or 0.0) <= (alone.high_ms or 0.0)
    rest = combine(slow_layer(), ("dispatcher", "ep-overlap=chunked"))
    assert rest.expected_ms == combine(slow_layer(), ("ep-overlap=chunked",)).expected_ms
    assert "dispatcher counts for nothing here" in (rest.basis or "")
    still_slow = combine(slow_layer(), ("dispatcher", "link=2"))
    assert still_slow.expected_ms == combine(slow_layer(), ("link=2",)).expected_ms


def test_between_hosts_a_dispatch_library_has_a_bound_until_peer_access_is_known() -> None:
    spread = slow_layer(groups={"x": "ep"}, group_sizes={"x": 16})
    bound = combine(spread, ("dispatcher",))
    known = combine(spread, ("dispatcher",), config={"peer_access": True})
    assert bound.expected_ms is None
    assert "need RDMA" in (bound.basis or "")
    assert known.expected_ms is not None
    assert bound.high_ms == known.high_ms


def test_one_rank_of_a_seemingly_slow_link_gives_a_dispatch_library_no_gain() -> None:
    found = combine(model(layers(wire=2_000).lane(4_300)), ("dispatcher",))
    assert found.status == "not_measured"
    assert "give all ranks of a group" in (found.reason or "")


def test_a_dispatch_library_sends_one_copy_per_rank_and_permutes_once() -> None:
    before = model(layers(wire=2_000).lane(4_300))
    after = apply(before, "dispatcher", None, Case.HIGH, moe_router_topk=8)
    items = after.lanes[0].items
    low = apply(before, "dispatcher", None, Case.LOW, moe_router_topk=8).lanes[0].items
    inside = items.duration_ns[2]
    assert inside == 0  # the cheaper permutation, here the one on the expert side
    # 10 MB per copy leave; the link reached 40 MB in 2 ms, so one copy takes 0.5 ms and a bit. At
    # 20 GB/s this is a slow link, where the library may reach only 43 of 50 GB/s.
    assert items.transfer_ns[1] == pytest.approx(508 * US, rel=0.01)
    assert low.transfer_ns[1] == pytest.approx((498 / 0.86 + 10) * US, rel=0.01)


def test_halves_bring_their_gradients_together_behind_every_backward_pass() -> None:
    s = layers(backward=True)
    for row in s.rows:
        row["host_ns"] = 10 * US
    before = model(s.lane(500))
    after = apply(before, "ep-overlap", "chunked").lanes[0].items
    dense = np.flatnonzero(after.role == Role.DENSE_GEMM)[0]
    # Ten launches for the slices and none for weights: one product in backward is no gradient.
    assert after.host_ns[dense] == (10 + 10 * 10) * US
    best = apply(before, "ep-overlap", "chunked", Case.HIGH).lanes[0].items
    assert best.host_ns[dense] == 10 * US


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


def test_a_fused_permutation_takes_launches_and_stops_off_the_host() -> None:
    s = Step()
    for number in range(48):
        if number in (10, 20, 30):
            s.wait(number - 1, own=5)
        s.item(20, Role.PERMUTE, host=30 if number else 500)
    s.item(100, Role.EP_DISPATCH, sent=80_000_000, own=40_000_000)
    s.item(80, Role.EXPERT_GEMM)
    s.item(100, Role.EP_COMBINE, sent=80_000_000, own=40_000_000)
    for _ in range(2):
        s.item(500, Role.PERMUTE, host=30)
    s.item(10, Role.DENSE_GEMM)
    before = model(s.lane(4_000))

    def host_us(case: Case) -> float:
        after = apply(before, "permute-fusion", case=case).lanes[0]
        return float(after.items.host_ns.sum()) / US

    # 29 of 55 launches go, and as large a part of the host's time.
    now = 500 + 47 * 30 + 2 * 30
    launches = int(before.lanes[0].items.kernels.sum())
    assert host_us(Case.LOW) == now
    assert host_us(EXPECTED) == pytest.approx(now * (1 - 29 / launches), abs=1)
    assert host_us(Case.HIGH) == host_us(EXPECTED)
    # A fused router spares ten more per forward pass.
    routed = apply(before, "permute-fusion", "router").lanes[0].items.host_ns.sum() / US
    assert routed == pytest.approx(now * (1 - 39 / launches), abs=1)
    with pytest.raises(NotApplicableError, match="the value is router"):
        apply(before, "permute-fusion", "experts")
    assert len(apply(before, "permute-fusion").lanes[0].waits) == 1
    assert len(apply(before, "permute-fusion", case=Case.LOW).lanes[0].waits) == 3


def test_sorting_chunks_costs_the_host_no_more_than_its_launches_once_it_is_fused() -> None:
    s = Step()
    s.item(20, Role.PERMUTE, host=10)
    s.item(100, Role.EP_DISPATCH, sent=80_000_000, own=40_000_000, host=10)
    s.item(500, Role.PERMUTE, host=400)  # one view per expert and rank, one launch
    s.item(80, Role.EXPERT_GEMM, host=10)
    s.item(100, Role.EP_COMBINE, sent=80_000_000, own=40_000_000, host=10)
    s.item(10, Role.DENSE_GEMM, host=10)
    before = model(s.lane(1_000))
    after = apply(before, "permute-fusion").lanes[0].items.host_ns / US
    launches = int(before.lanes[0].items.kernels.sum())
    assert after.tolist()[:6] == pytest.approx([10, 10, 450 / launches, 10, 10, 10], abs=0.01)


def test_a_fused_permutation_is_not_fused_again() -> None:
    routed = model(layers().lane(500), families=["te-router"])
    with pytest.raises(NotApplicableError, match="the router is fused already"):
        apply(routed, "permute-fusion", "router")
    with pytest.raises(NotApplicableError, match="fused already"):
        apply(model(layers().lane(500), families=["te-permute"]), "permute-fusion")


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


@pytest.mark.parametrize(("scale", "waited_us"), [(1.0, 200), (0.5, 100)])
def test_of_the_waiting_for_slow_ranks_a_quarter_is_left_whatever_the_hosts_speed(
    scale: float, waited_us: int
) -> None:
    lanes = []
    for rank, host in enumerate((100, 300)):
        s = Step()
        s.item(50, Role.EP_DISPATCH, host=host, collective=0, transfer=50)
        lanes.append(s.lane(400, rank=rank))
    before = model(*lanes, collectives=1)
    after = CHANGES["stragglers"].apply(before, Ask(None, EXPECTED, Context(), scale))
    assert after.lanes[0].items.duration_ns[0] == (50 + waited_us // 4) * US
    assert after.lanes[1].items.duration_ns[0] == 50 * US
    best = CHANGES["stragglers"].apply(before, Ask(None, Case.HIGH, Context(), scale))
    assert [int(one.items.duration_ns[0]) for one in best.lanes] == [50 * US, 50 * US]
