"""Every constant of the what-if model: measured in the trace, else published with its source."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_advisor.measure.rank import MeasuredRank
from moe_advisor.whatif.delays import stream_predecessor
from moe_advisor.whatif.model import NEVER_LATE, Calibration, Ints, Lane

DEFAULT_LAUNCH_NS = 6_000
"""Host time per launch in eager PyTorch; 4 to 8 µs on current server CPUs."""

DEFAULT_LATENCY_NS = 8_000
"""Launch call to kernel start under a profiler; 3 to 12 µs."""

DEFAULT_GAP_NS = 1_500
"""Between two queued kernels of one stream; 1 to 2 µs on Hopper."""

DEFAULT_FLOOR_NS = 2_000
"""The shortest useful kernel."""

DEFAULT_WIRE_FLOOR_NS = 10_000
"""NCCL's latency of a small all-to-all inside one NVLink domain."""

DEFAULT_SM_COUNT = 132
"""H100 and H200 SXM."""

EXPLAINED_PERCENTILE = 90
"""Launch latency and kernel gaps vary; up to this percentile they are that, beyond unexplained."""

SAMPLES = 20
"""Fewer samples make no percentile."""


def defaults(hardware: Mapping[str, Any]) -> Calibration:
    """The constants without any trace."""
    return Calibration(
        launch_ns=DEFAULT_LAUNCH_NS,
        latency_ns=DEFAULT_LATENCY_NS,
        gap_ns=DEFAULT_GAP_NS,
        floor_ns=DEFAULT_FLOOR_NS,
        wire_floor_ns=DEFAULT_WIRE_FLOOR_NS,
        sm_count=int(hardware.get("sm_count") or DEFAULT_SM_COUNT),
    )


def measure(
    ranks: Sequence[MeasuredRank], lanes: Sequence[Lane], hardware: Mapping[str, Any]
) -> Calibration:
    """The constants that the lanes show; the defaults where they show too little."""
    base = defaults(hardware)
    latency, graph, gap, host, short, wire = [], [], [], [], [], []
    for lane in lanes:
        items = lane.items
        end = items.start_ns + items.duration_ns
        before = stream_predecessor(items.stream)
        free = np.where(before >= 0, end[before], 0)
        launched = items.latency_ns > NEVER_LATE
        plain = ~items.in_graph & launched
        idle = plain & (free < items.launch_ns)
        latency.append((items.start_ns - items.launch_ns)[idle])
        heads = items.graph_heads() & launched & (free < items.launch_ns)
        graph.append((items.start_ns - items.launch_ns)[heads])
        ahead = (before >= 0) & (items.launch_ns + 2 * base.latency_ns < free)
        # What waits for another stream, or beside one, says nothing of its own.
        ahead &= _reached(items.start_ns, end) <= free
        ahead[lane.edges.item] = False
        gap.append((items.start_ns - free)[ahead])
        plain[lane.waits.item] = False
        host.append(items.host_ns[plain & (items.host_ns > 0)])
        short.append(items.duration_ns[(items.blocks > 0) & (items.duration_ns > 0)])
        wire.append(items.transfer_ns[items.collective >= 0])

    def percentile(samples: list[Any], q: float, fallback: int) -> int:
        values = np.concatenate(samples) if samples else np.empty(0)
        return int(np.percentile(values, q)) if len(values) >= SAMPLES else fallback

    sm_count = next((r.trace.device.sm_count for r in ranks if r.trace.device.sm_count), None)
    return Calibration(
        launch_ns=percentile(host, 25, base.launch_ns),
        latency_ns=percentile(latency, EXPLAINED_PERCENTILE, base.latency_ns),
        gap_ns=percentile(gap, EXPLAINED_PERCENTILE, base.gap_ns),
        floor_ns=percentile(short, 10, base.floor_ns),
        wire_floor_ns=min(percentile(wire, 5, base.wire_floor_ns), base.wire_floor_ns),
        sm_count=int(sm_count or base.sm_count),
        graph_latency_ns=percentile(graph, EXPLAINED_PERCENTILE, 0),
    )


def _reached(start_ns: Ints, end_ns: Ints) -> Ints:
    """Per item the latest end of all that started before it, 0 for the first."""
    order = np.argsort(start_ns, kind="stable")
    reach = np.maximum.accumulate(end_ns[order])
    found = np.zeros(len(start_ns), np.int64)
    found[order[1:]] = reach[:-1]
    return found


# -------------------------------------------- figures that no trace before a change has

GEMM_TAIL_NS = 10_000
"""What a GEMM keeps when its rows are halved: half a 128 × 256 tile at K = 2,048 on one SM, which
takes 18 µs at 7.5 TFLOP/s per SM (989 TFLOP/s over 132 SMs)."""

QUANTISED_WAVES = 1
"""A persistent GEMM launches one block per SM. With a static tile schedule it runs the blocks that
communication kept from starting after the others. Beside a wire that held 4 of 132 SMs, CUTLASS's
grouped GEMM took 1.5 to 1.8 times as long, cuDNN attention of one block per SM 1.0 times
(benchmarks/overlap_costs.yaml)."""

WIRE_BESIDE_COMPUTE = (0.14, 0.105, 0.085)
"""How much longer an all-to-all takes for the time that the other half's compute runs beside it:
extra transfer over hidden time in six pairs of captures of chunked overlap on both links, quartiles
and median (benchmarks/overlap_costs.yaml)."""

WIRE_BESIDE_STREAMS = (0.34, 0.22, 0.1)
"""The same beside two streams of compute, as in merged overlap: quartiles and median of fourteen
pairs of either kind. Eight pairs of merged overlap alone give 0.25 to 0.34, but a collective that
gets its SMs one after the other counts as transfer from the first: that part is ROOM_FROM."""

LEFT_OVER_WAVE = (0.8, 0.745, 0.68)
"""Time of the blocks that a wire kept from starting, as a share of a whole kernel's: they have the
memory and the power of the GPU nearly to themselves. Quartiles and median of twelve backward GEMMs
of chunked overlap, all beside the slow link's wire over none of it
(benchmarks/overlap_costs.yaml)."""

ROOM_FROM = (0.92, 0.85, 0.83)
"""From which share of its time on a GEMM of one block per SM gives room to a collective that came
after it: quartiles and median of 310 such starts in eleven captures of merged overlap
(benchmarks/overlap_costs.yaml: room_from). Kernels of many waves do so in their last."""

MERGE_MICROBATCHES = 3
"""With two micro-batches only one of four passes is merged; Megatron's guidance asks for many."""

HANDOVER_NS = (245_000.0, 220_000.0, 118_000.0)
"""Host time of one hand-over between the launching thread and autograd's in Megatron-Core's merged
schedule, with what the node around it costs: streams, graph, events, inputs detached. High: host
time that 24 pairs of captures with and without the schedule differ by, median (quartiles 0.20 and
0.31 ms); expected: a tenth less, as a profiler slows the event calls in it. Low: what eight pairs
of runs could not hide of it (benchmarks/overlap_costs.yaml: handovers). Beside another job on the
host up to 0.8 ms. It is Python between recorded operators: no profiler's stretch applies."""

SHARED_GPU = (1.0, 1.0, 0.5)
"""Share of the time that two compute kernels run side by side which each loses to the other: all,
where either fills the GPU; half, where they need different units (tensor cores, memory)."""

MERGED_ACTIVATION_SHARE = 0.1
"""Least headroom, as a share of the peak, that a second micro-batch in flight is assumed to need;
the trace does not say what one micro-batch keeps. Peaks grew by 0 to 4 % in six measured pairs,
where weights and optimizer are most of the memory."""

GRAPH_MEMORY_SHARE = 0.05
"""Least headroom, as a share of the peak, for static buffers of CUDA graphs: 3.05 to 3.20 GiB with
graphs on attention, 4.69 to 5.09 GiB with whole layers, measured."""

SLICE_LAUNCHES = 10
"""Launches more per backward pass through a layer in halves: autograd fills with zeros and copies,
for two halves of two tensors (tokens and routing weights), and adds them up. Counted in four
captures of chunked overlap, with one addition per expert weight (benchmarks/overlap_costs.yaml)."""

ADDITION_VALUES = 3
"""Adding a gradient to another reads two values and writes one per parameter."""

OPTIMIZER_VALUES = 10
"""Adam reads weight, gradient and two moments and writes three; with 32-bit moments and master
weights it is 14 values of 16 bits, without 7: between the two."""

JOIN_LAUNCHES = 2
"""Two events recorded and two waited for around a collective on its own stream: four short CUDA
calls, about the host time of two launches."""

DISPATCH_GBPS = {"deepep": (153.0, 250.0), "hybridep": (250.0, 408.0)}
"""GB/s that a dispatch library copies, own rank included: low and high. DeepEP 1.x publishes 153 to
158 within eight H800; its torch API reaches 246 to 348 on eight B200, whose NVLink is twice as fast
as H200's. HybridEP: 269.8 MB in 661 µs on eight H100."""

REFERENCE_NVLINK_GBPS = 450.0
"""NVLink of H100 and H200, GB/s per direction."""

DEFAULT_TOP_K = 8
"""Experts per token where no configuration tells: DeepSeek-V3, Qwen3 MoE and Kimi use 8."""

SAVED_PERMUTATION = (0.6, 0.9, 1.0)
"""Share of the cheaper permutation that a dispatch library saves: it still has to sort what arrives
and to add up what leaves."""

SLOW_LINK_SHARE = 0.25
"""A wire below this share of NVLink is another link."""

DEFAULT_DOMAIN = 8
"""GPUs that share NVLink on a host of eight."""

RATE_BYTES = 4 << 20
"""Smaller all-to-alls are half latency even over NVLink: 4.2 MB reach 0.4 of its figure, 17 MB
0.55."""

NVLINK_REACH = (0.54, 0.61, 0.72)
"""What NCCL's all-to-all reaches of NVLink's figure, its fixed cost taken off. Least and median of
30 captures over NVLink with payloads of 16 MB or more and even enough routing, greatest 0.65
(benchmarks/overlap_costs.yaml: nvlink_reach). High: 325 of 450 GB/s, from the time published for
eight H100 (4,096 tokens of 7,168 values to 8 experts in 1,265 µs; arXiv 2603.07685, table 7)."""

SLOW_LINK_RATE = (0.86, 1.0, 1.0)
"""Rate of a dispatch library over a slow link, as a share of what the all-to-all reaches there now.
DeepEP publishes 43 to 58 GB/s between nodes over links of 50 GB/s (16 to 64 ranks; above 50 the own
node's tokens are counted too). That the all-to-all reaches the link now is the assumption."""

GRAPH_REPLAY_NS = (20_000.0, 60_000.0)
"""Host time around one graph replay in PyTorch beside the launch: copying inputs into the graph's
buffers, the autograd Function, the graph launch (10 to 15 µs for tens of nodes)."""

GRAPH_GAP_NS = 1_000
"""Between kernels of one graph: 1 µs."""

GRAPH_MIN_KERNELS = 3
"""A graph of fewer kernels costs as much as it saves."""

GRAPHED_ALREADY = 0.3
"""A run that launches this share of its kernels from graphs has graphs on."""

GROUPED_SHARE = 0.5
"""If half of the expert GEMMs are grouped kernels, grouping is on."""

SEQUENTIAL_EXPERTS = 4
"""So many equal kernels within one layer's experts are a loop over experts."""

PACKING_LIMIT = (1.0, 0.6, 0.35)
"""How far small GEMMs shrink when they run as one: limited by reading their weights."""

BACKWARD_ACTIVATION = (4.0, 2.5, 2.0)
"""Activation work of backward over forward's: reads two tensors and writes two where forward reads
one and writes one, and sums for the router's gradient."""

HOST_ERROR = 0.6
"""Host-bound steps vary by 10 to 30 % from machine to machine and run to run: gains of 4, 7, 14 and
25 % were measured for one and the same change."""

PERMUTE_PASSES = 4
"""Memory traffic per byte sent: read and written before the wire, again after it."""

PERMUTE_OVER_FLOOR = (2.5, 1.5, 1.1)
"""Fused permutation over the time of moving its bytes once at the reachable bandwidth."""

PERMUTE_WORTH = 0.95
"""A permutation within 5 % of what fusing would give is not worth fusing."""

FUSED_LAUNCHES = {False: (19, 2), True: (3, 2)}
"""Launches left around the wire per pass through a layer, before the first and after the second
all-to-all, forward and backward: Megatron-Core 0.16 with Transformer Engine's fused permutation in
captures of both profilers. Unfused it is (48, 3) and (2 to 3, 7) in every capture of Megatron-Core
(benchmarks/overlap_costs.yaml: permute_launches)."""

FUSED_WAITS = 1
"""Stops of the host left before the dispatch, for the token counts; unfused there are three."""

ROUTER_LAUNCHES = {False: 10, True: 4}
"""Launches that a fused router (top-k, scores, auxiliary loss) spares per pass through a layer
beside FUSED_LAUNCHES, forward and backward: 10, and 4 to 7 by where the permutation ends, in three
pairs of captures (benchmarks/overlap_costs.yaml: router_launches)."""

ACTIVATION_GROWTH = (0.3, 1.2)
"""Peak memory without full recompute over the peak with it, minus one: at least 0.3; 1.1 to 1.2
where activations dominate (22.8 against 10.7 GiB, measured)."""

UNEVEN_TOKENS = 1.05
"""Natural routing on two ranks measures up to 1.05; below it there is nothing to balance."""

EVEN_WIRE_LIMIT = 4.0
"""A payload spread evenly takes at most this many times the uneven one's time."""

WAITING_LEFT = (0.5, 0.25, 0.0)
"""Share of the waiting between ranks that stays after stragglers are fixed: ranks always differ a
little, 1 to 3 ms of 143 ms on two equal GPUs with equal tokens."""

RECORDING_COST = (2.1, 2.94, 4.44)
"""What recording one operator, with the CUDA calls in it, costs the host: multiples of the time
between an operator's start and that of the first one inside it, which the trace shows. 10, 50 and
90 % of 18 captures of the torch profiler of whose step the host sets a fifth or more, each against
the same job in processes without a profiler (benchmarks/overlap_costs.yaml: host_stretch). Of 25
captures that it was not taken from the stretch is off by a factor of 1.22 in the mean, by one
stretch for all by 1.30."""

RECORDING_MOST = 0.75
"""No more of the host's time is taken for recording: beyond it the trace tells nothing."""

STRETCH = (1.07, 1.70, 2.51)
"""How much a profiler stretches host work where neither a log nor nested operators tell, as of the
trace of CUDA calls alone: 10, 50 and 90 % of 29 nsys captures of whose step the host sets a
fifth or more (benchmarks/overlap_costs.yaml). A host that another job slows while it is traced
counts among them."""

STRETCH_OPERATORS = (1.52, 2.02, 3.23)
"""The same where the profiler recorded operators as well: 18 captures of the torch profiler."""

LOGGED_STEP = 0.025
"""How far a step from a log and its replay at the right speed of the host may differ: steps that
the GPU sets are replayed 1.5 % off without the profiler in the mean, and runs repeat within 1.5 %
(benchmarks/overlap_costs.yaml: unprofiled)."""

STRETCH_MARGIN = 1.5
"""How far beyond the 90 % of a profiler's stretch a step from a log is still believed."""

SLOWER_HOST = 1.25
"""The log may be of a process with a slower host than the traced one: by up to a quarter between
processes of one job (229, 307 and 332 ms; 252 and 316 ms)."""

REPEATABILITY = 0.015
"""Step times of one job repeat within 1 to 2 % from run to run: no prediction is better."""

REPEATABILITY_OVERLAPPED = 0.03
"""So far differ gains of one overlap: half the range of an overlapped job's runs is 2.2 % in the
median of ten jobs that the GPU bounds and 3.5 % of fifteen in all; without overlap it is 1.3 % of
29 jobs (benchmarks/overlap_costs.yaml: repeats)."""

MODEL_ERROR = 0.3
"""Share of a gain that the model may be wrong by beyond its cases; published and measured wire
rates alone differ by 20 %."""

OVERLAPPED_ALREADY = 0.15
"""A run that hides this share of its all-to-all has overlap on; by chance, behind the tail of other
streams, it is 0 to 2 %."""

SECTION_TOLERANCE = 0.01
"""A modelled part within 1 % of the step is the whole step."""

RANGE_POINTS = 0.0799
"""A range may always be 8 points of the step wide, less rounding."""

RANGE_GAINS = 1.4
"""A much wider range than the expected gain helps nobody to decide."""

RANGE_STEP = 0.4
"""No range is wider than this share of the step, except where even its low end is above it."""

WALL_SHARE = 0.1
"""Below a tenth of the step no wall stands: what is left is compute."""
