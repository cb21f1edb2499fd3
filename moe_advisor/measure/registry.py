"""Every metric with its unit, its denominator and its definition: the one list that all use.

The result, the report, the rules (`m.<name>`), budgets and the reference pages take names, units
and texts from here. A metric that is not in this list does not exist.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric: `better` says which direction is an improvement, or None where neither is."""

    name: str
    unit: str
    title: str
    definition: str
    better: str | None = "lower"
    pitfall: str = ""


def _ms(name: str, title: str, definition: str, **more: str | None) -> Metric:
    return Metric(name, "ms/step", title, definition, **more)  # type: ignore[arg-type]


_METRICS = (
    _ms("step_ms", "Step time", "Length of the step window on the GPU: from the first activity launched inside the step's host range (or the moment the device falls idle before it) to the same point of the next step."),
    _ms("gpu_busy_ms", "GPU busy", "Union of all GPU activities (kernels, copies, memsets, opaque graphs) inside the step.", better=None),
    _ms("gpu_idle_ms", "GPU idle", "Step time minus GPU busy time."),
    _ms("compute_ms", "Compute", "Union of all kernels that are not communication.", better=None, pitfall="Grows when compute slows down beside communication."),
    _ms("compute_absent_ms", "Compute absent", "Step time minus compute time: everything during which no compute kernel runs, whoever is to blame."),
    _ms("launch_starved_ms", "Launch starved", "Part of the compute-absent time in which the next compute kernel had not been issued by the host yet, whether or not communication was resident."),
    _ms("blocked_by_comm_ms", "Blocked by communication", "Part of the compute-absent time after the next compute kernel was issued, during which communication ran."),
    _ms("blocked_by_copy_ms", "Blocked by copies", "Part of the compute-absent time after the next compute kernel was issued, during which only copies or memsets ran."),
    _ms("compute_absent_unresolved_ms", "Compute absent, unresolved", "Part of the compute-absent time with the next compute kernel issued and nothing running that explains the delay."),
    _ms("comm_ms", "Communication", "Union of all communication kernels and copy-engine collectives."),
    _ms("comm_exposed_ms", "Exposed communication", "Communication time during which no compute kernel runs on the same device. Copies do not hide communication."),
    _ms("ep_a2a_ms", "EP all-to-all", "Union of dispatch, combine and notify activities of expert parallelism."),
    _ms("ep_a2a_exposed_ms", "Exposed EP all-to-all", "EP all-to-all time during which no compute kernel runs.", pitfall="An upper bound of what overlap can gain; waiting for a late peer is part of it."),
    Metric("ep_a2a_exposed_share", "share", "Exposed EP all-to-all share", "ep_a2a_exposed_ms divided by step_ms."),
    _ms("ep_a2a_wait_ms", "EP all-to-all waiting", "Sum over the step's EP collectives of own duration minus transfer: time spent waiting for the last rank of the group.", pitfall="Needs all ranks of the group."),
    _ms("ep_a2a_transfer_ms", "EP all-to-all transfer", "Sum over the step's EP collectives of the shortest participant's duration.", pitfall="With uneven splits the shortest participant is a lower bound."),
    _ms("ep_a2a_blocking_ms", "EP all-to-all blocking", "Part of the exposed EP all-to-all time that a compute kernel already issued waited for, by the order of its stream and the events it waited for.", pitfall="Where the trace holds no event records (torch profiler), a kernel that starts within 10 µs after the end of the communication, behind a stream wait, counts as dependent: then it is an estimate."),
    _ms("ep_notify_ms", "EP notify", "Union of handshakes, token counts and synchronisation activities of expert parallelism."),
    Metric("ep_a2a_link_share", "share", "EP all-to-all of the link", "ep_a2a_bus_gbps divided by the link's figure of this GPU in one direction: NVLink inside a node, the NIC across nodes.", better="higher", pitfall="Which link it was is known from the report's machines, else assumed from rank numbers; the rates table says which."),
    Metric("ep_a2a_bus_gbps", "GB/s", "EP all-to-all rate", "Bytes that leave the rank in EP collectives divided by their transfer time.", better="higher"),
    _ms("dp_collective_ms", "DP collectives", "Union of data-parallel gradient reductions, parameter gathers and norm reductions."),
    _ms("dp_collective_exposed_ms", "Exposed DP collectives", "Data-parallel communication during which no compute kernel runs."),
    _ms("dp_collective_wait_ms", "DP waiting", "Waiting part of the data-parallel collectives, as for EP."),
    _ms("dp_collective_transfer_ms", "DP transfer", "Transfer part of the data-parallel collectives, as for EP."),
    _ms("tp_collective_ms", "TP collectives", "Union of tensor-parallel communication."),
    _ms("tp_collective_exposed_ms", "Exposed TP collectives", "Tensor-parallel communication during which no compute kernel runs."),
    _ms("tp_collective_wait_ms", "TP waiting", "Waiting part of the tensor-parallel collectives, as for EP."),
    _ms("tp_collective_transfer_ms", "TP transfer", "Transfer part of the tensor-parallel collectives, as for EP."),
    _ms("cp_collective_ms", "CP collectives", "Union of context-parallel communication."),
    _ms("cp_collective_exposed_ms", "Exposed CP collectives", "Context-parallel communication during which no compute kernel runs."),
    _ms("cp_collective_wait_ms", "CP waiting", "Waiting part of the context-parallel collectives, as for EP."),
    _ms("cp_collective_transfer_ms", "CP transfer", "Transfer part of the context-parallel collectives, as for EP."),
    _ms("pp_p2p_ms", "Pipeline P2P", "Union of pipeline sends and receives. A run without a pipeline has a measured 0."),
    _ms("pp_p2p_exposed_ms", "Exposed pipeline P2P", "Pipeline sends and receives during which no compute kernel runs."),
    _ms("pp_p2p_wait_ms", "Pipeline P2P waiting", "Sum over the step's sends and receives of own duration minus transfer: waiting for the neighbouring stage.", pitfall="Mostly the bubble: a receive is resident until its sender gets there."),
    _ms("pp_p2p_transfer_ms", "Pipeline P2P transfer", "Sum over the step's sends and receives of the shorter of the two partners' durations."),
    Metric("dp_collective_bus_gbps", "GB/s", "DP collective rate", "Bus bandwidth of data-parallel collectives of 1 MiB and more: size x the factor of nccl-tests (2(n-1)/n for all-reduce, (n-1)/n for all-gather and reduce-scatter) over their transfer time.", better="higher", pitfall="Low while compute runs beside it on purpose: overlap shares SMs and memory."),
    Metric("tp_collective_bus_gbps", "GB/s", "TP collective rate", "Bus bandwidth of tensor-parallel collectives of 1 MiB and more, as for DP.", better="higher"),
    Metric("cp_collective_bus_gbps", "GB/s", "CP collective rate", "Bus bandwidth of context-parallel collectives of 1 MiB and more, as for DP.", better="higher"),
    Metric("pp_p2p_bus_gbps", "GB/s", "Pipeline P2P rate", "Bytes of matched sends over their transfer time.", better="higher", pitfall="One direction of a kernel that sends and receives at once."),
    Metric("comm_sms_held", "SMs", "SMs held by communication", "Thread blocks of communication kernels, weighted by their duration: each holds one multiprocessor from start to end, waiting included.", pitfall="Copy-engine collectives hold none and are not counted."),
    _ms("pp_bubble_ms", "Pipeline bubble", "Compute-absent time between a rank's first forward (or its receive) and last backward during which a pipeline receive is resident, and either the next kernel was issued or the host itself stood in a synchronising call behind the receive. Other communication does not run in it.", pitfall="A last stage that finishes early waits in the gradient norm, not in the bubble."),
    _ms("pp_bubble_warmup_ms", "Bubble, warm-up", "Part of the pipeline bubble before the step's first backward work."),
    _ms("pp_bubble_steady_ms", "Bubble, steady", "Part of the pipeline bubble between the first backward and the last forward work."),
    _ms("pp_bubble_cooldown_ms", "Bubble, cool-down", "Part of the pipeline bubble after the step's last forward work."),
    _ms("pp_bubble_ideal_ms", "Ideal bubble", "(PP - 1) / (micro-batches x model chunks) of the time from first forward to last backward outside the bubble: what the schedule costs if all stages are equal.", better=None),
    _ms("pp_stage_imbalance_ms", "Pipeline stage imbalance", "Compute time of the slowest pipeline stage between first forward and last backward, minus the mean over the stages."),
    _ms("other_collective_ms", "Other collectives", "Union of communication whose purpose the trace does not tell."),
    _ms("other_collective_exposed_ms", "Exposed other collectives", "Communication of unknown purpose during which no compute kernel runs."),
    _ms("overlap_slowdown_ms", "Overlap slowdown", "Over compute kernels that ran beside communication: duration minus the median of the same kernel and grid without it."),
    _ms("expert_gemm_ms", "Expert GEMM", "Union of the GEMM kernels of the routed experts, forward and backward.", better=None),
    Metric("expert_gemm_tflops", "TFLOP/s", "Expert GEMM rate", "Floating-point operations of the experts' matrix products, from their recorded shapes, divided by the union of their kernels' time.", better="higher", pitfall="Needs record_shapes; padded rows count as work."),
    Metric("expert_gemm_peak_share", "share", "Expert GEMM of the peak", "expert_gemm_tflops divided by the GPU's dense peak of the run's precision.", better="higher"),
    Metric("dense_gemm_tflops", "TFLOP/s", "Dense GEMM rate", "As expert_gemm_tflops, for GEMMs outside the routed experts.", better="higher"),
    Metric("rows_per_local_expert", "rows", "Rows per local expert", "Token rows of a forward expert GEMM divided by its number of experts, mean over products: below some hundred rows a GEMM can't fill the GPU.", better="higher"),
    Metric("expert_gemm_share", "share", "Expert GEMM share", "expert_gemm_ms divided by step_ms.", better="higher"),
    Metric("a2a_to_expert_gemm", "ratio", "All-to-all : expert GEMM", "ep_a2a_exposed_ms divided by expert_gemm_ms."),
    _ms("dense_gemm_ms", "Dense GEMM", "Union of GEMM kernels outside the routed experts.", better=None),
    _ms("gemm_unattributed_ms", "GEMM, unattributed", "Union of GEMM kernels that no evidence assigns to experts or dense layers.", better=None),
    _ms("attention_ms", "Attention", "Union of attention kernels, fused or not.", better=None),
    _ms("router_ms", "Router", "Union of router kernels: gating, top-k, auxiliary loss."),
    _ms("permute_ms", "Permutation", "Union of token permute, unpermute, sort, scan, pad and layout kernels."),
    _ms("activation_ms", "Activation", "Union of the experts' activation kernels.", better=None),
    _ms("optimizer_ms", "Optimizer", "Union of optimizer kernels."),
    _ms("elementwise_ms", "Elementwise", "Union of elementwise, cast and reduction kernels outside the roles above."),
    Metric("permute_to_expert_gemm", "ratio", "Permutation : expert GEMM", "permute_ms divided by expert_gemm_ms."),
    _ms("permute_floor_ms", "Permutation floor", "Time the bytes moved by dispatch and combine need to be read once and written once at the GPU's memory bandwidth: what one fused permutation on each side of the wire costs."),
    _ms("compute_excess_ms", "Compute above its floor", "Permutation above permute_floor_ms plus the unfused softmax, mask and dropout kernels of attention that no fused attention kernel accompanies."),
    _ms("host_gap_ms", "Host gaps", "Device idle gaps whose next activity was launched after the gap began; the whole gap counts."),
    _ms("host_gap_sync_ms", "Host gaps in a synchronising call", "Part of the host gaps during which a thread of the process stood in a synchronising call or blocking copy."),
    _ms("host_gap_alloc_ms", "Host gaps in the allocator", "Part of the host gaps inside cudaMalloc, cudaFree and the like."),
    _ms("host_gap_data_ms", "Host gaps in data loading", "Part of the host gaps inside a named data-loading range."),
    _ms("host_gap_launch_ms", "Host gaps while launching", "The rest of the host gaps: the host was busy getting to the next launch."),
    _ms("host_gap_after_sync_ms", "Host gaps after a synchronisation", "Host gaps that began while a thread stood in a synchronising call."),
    _ms("dependency_idle_ms", "Dependency idle", "Device idle time that is not a host gap: the next activity was issued and waited for another stream, a peer or a copy."),
    _ms("recompute_ms", "Recompute", "Union of all activities launched by forward operators that run again inside backward, communication included."),
    _ms("memcpy_exposed_ms", "Exposed copies", "Copies during which no kernel runs."),
    _ms("offload_ms", "Offload copies", "Union of large copies between device and host, hidden or not.", better=None),
    _ms("offload_exposed_ms", "Exposed offload", "Large copies between device and host during which no compute kernel runs."),
    Metric("kernels_per_step", "count/step", "Kernels per step", "Number of kernels launched inside the step."),
    Metric("syncs_per_step", "count/step", "Synchronising calls per step", "Number of synchronising CUDA calls inside the step's host range."),
    Metric("gpu_slowness", "ratio", "Slowest GPU", "Over kernels whose work does not depend on routing (dense GEMM and attention of 20 µs and more): duration on the slowest rank over the median of its peers, same kernel and grid, weighted by time, without those beside communication.", pitfall="Above 1.03 a GPU is slow, apart from tokens and host; with two ranks it may be the other that is fast."),
    Metric("graph_kernel_share", "share", "Kernels in CUDA graphs", "Kernels replayed by a CUDA graph divided by all kernels, by number.", better=None),
    Metric("graph_opaque_share", "share", "Opaque graph share", "Time in CUDA graph launches whose kernels were not recorded, divided by step time.", better=None),
    Metric("expert_token_imbalance", "max/mean", "Expert token imbalance", "Per forward token dispatch, tokens received by the fullest EP rank divided by the mean, averaged over dispatches."),
    Metric("expert_gemm_imbalance", "max/mean", "Expert GEMM imbalance", "Per step, expert GEMM time of the slowest rank of an EP group divided by the group's mean, averaged over steps and groups.", pitfall="Small GEMMs take no less time with fewer rows: it lies below the imbalance of tokens."),
    _ms("balance_saving_ms", "Saved by perfect balance", "Time that the fullest rank of each forward dispatch spends on its tokens above the mean, at the run's time per token: what even routing would save at most."),
    Metric("clock_residual_us", "µs", "Clock residual", "Worst pair of ranks: half the span from the 5th to the 95th percentile of the differences at which collectives end, after offset and drift were fitted.", pitfall="Ends of uneven collectives scatter by themselves: see the anchors in the clock table."),
    Metric("microbatches_per_step", "count/step", "Micro-batches per step", "Forward passes per step.", better=None),
    Metric("memory_peak_gib", "GiB", "Peak memory", "Highest allocated (else reserved) device memory in the capture."),
    Metric("memory_headroom_gib", "GiB", "Memory headroom", "Device memory minus the peak.", better="higher"),
    Metric("memory_growth_gib", "GiB", "Memory growth", "Allocated (else reserved) device memory at the end of the last step minus that at the end of the first: above zero in steady state something is kept."),
    Metric("memory_fragmentation_gib", "GiB", "Memory fragmentation", "Reserved minus allocated device memory at the peak of allocated memory.", pitfall="An upper bound: part of it is merely cached."),
    Metric("device_allocs_per_step", "count/step", "Driver allocations per step", "Calls inside a step that take device or pinned memory from the driver or give it back (cudaMalloc, cudaFree, cuMemCreate, cuMemMap and their kin): none in steady state."),
    Metric("alloc_retries", "count/step", "Allocator frees and mallocs", "cudaFree calls inside a step that a cudaMalloc follows: the caching allocator gave memory back and asked again."),
    Metric("unclassified_share", "share", "Unclassified compute", "Compute kernels of no known family divided by step time."),
    Metric("tokens_per_s_per_gpu", "tokens/s", "Tokens per second and GPU", "Global batch tokens divided by the unprofiled step time and the number of GPUs.", better="higher"),
    Metric("model_tflops_per_gpu", "TFLOP/s", "Model TFLOP/s per GPU", "Model FLOPs divided by the unprofiled step time and the number of GPUs.", better="higher"),
    Metric("mfu", "share", "Model FLOPs utilisation", "model_tflops_per_gpu divided by the GPU's dense peak of the run's precision.", better="higher"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in _METRICS}
