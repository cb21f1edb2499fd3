"""The only reader of metadata that can hold secrets, by an allow-list of named properties.

Profiles carry the whole launch environment, host and user names, command lines and paths. Nothing
of that gets into the program unless it is named here: GPU properties, versions, and environment
variables that change performance, each with the values it may have. Everything else is never
fetched or is dropped at once.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moe_advisor.model import Device
    from moe_advisor.table_source import TableSource

DISPLAY_NAME_LIMIT = 120
"""Longest base name shown, in characters: more than any sane file name, less than a screen line."""

_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[PX^_][^\x1b]*(?:\x1b\\)?|.?)"
    r"|\x9b[0-?]*[ -/]*[@-~]",
    re.DOTALL,
)
_SPACES = re.compile(r"[\t\n\v\f\r\x85\u2028\u2029]+")
# Cc control, Cf format (bidi overrides, zero width), Cs lone surrogates, Cn not assigned
_UNSAFE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Cn"})


def safe_text(text: str, limit: int) -> str:
    """`text` on one line, without control, bidi and ANSI characters, at most `limit` long.

    Line breaks and tabs become one space. A text that was cut ends with an ellipsis.
    """
    # The marks removed below can make a long text short, so look further than the limit, but not
    # through a name of 10 MB.
    head = text[: 4 * limit + 64]
    if head.isascii() and head.isprintable():
        cleaned = head
    else:
        flat = _SPACES.sub(" ", _ANSI.sub("", head))
        cleaned = "".join(c for c in flat if unicodedata.category(c) not in _UNSAFE_CATEGORIES)
    if len(cleaned) <= limit and len(head) == len(text):
        return cleaned
    return cleaned[: max(limit - 1, 0)] + "…"


_COMMAND = re.compile(r"^([ \t]*)(::|##\[)", re.MULTILINE)


def no_commands(text: str) -> str:
    """`text` without lines that a CI runner takes for its commands (`::error::`, `##[group]`)."""
    return _COMMAND.sub(r"\1\\\2", text)


def display_name(path: str | PurePath) -> str:
    """The base name of `path`, safe to show; folders, also Windows ones, are dropped."""
    parts = [part for part in re.split(r"[/\\]+", str(path)) if part not in ("", ".", "..")]
    return safe_text(parts[-1] if parts else "", DISPLAY_NAME_LIMIT) or "input"


# --- environment variables ------------------------------------------------------------------

_NUMBER = re.compile(r"-?\d{1,18}(?:\.\d{1,6})?")
_SEPARATORS = re.compile(r"[,;:=^+\[\]>| ]+")
_FLAGS = frozenset({"true", "false", "on", "off", "yes", "no", "y", "n"})
_VALUE_LIMIT = 200  # characters; the longest option lists in published recipes are below 100
_PATH_LEVELS = frozenset({"loc", "nvl", "nvb", "c2c", "pix", "pxb", "pxn", "phb", "node", "sys"})
_COLLECTIVES = frozenset({"broadcast", "reduce", "allgather", "reducescatter", "allreduce"})
_NCCL_ALGORITHMS = _COLLECTIVES | {
    "tree", "ring", "collnetdirect", "collnetchain", "nvls", "nvlstree", "pat",
}  # fmt: skip
_NCCL_PROTOCOLS = _COLLECTIVES | {"ll", "ll128", "simple"}
_NCCL_DEBUG = frozenset({"none", "version", "warn", "info", "abort", "trace"})
_ALLOCATOR_OPTIONS = frozenset(
    {
        "backend", "native", "cudamallocasync", "max_split_size_mb", "roundup_power2_divisions",
        "roundup_bypass_threshold_mb", "garbage_collection_threshold", "expandable_segments",
        "release_lock_on_cudamalloc", "release_lock_on_hipmalloc", "pinned_use_cuda_host_register",
        "pinned_use_hip_host_register", "pinned_num_register_threads",
        "pinned_use_background_threads", "max_non_split_rounding_mb",
        "per_process_memory_fraction", "graph_capture_record_stream_reuse",
    }
)  # fmt: skip
_LAZY_LOADING = frozenset({"lazy", "eager", "default"})
_ORDERS = frozenset({"fastest_first", "pci_bus_id"})
_NOTHING: frozenset[str] = frozenset()

_ALLOWED_VARIABLES: dict[str, frozenset[str]] = dict.fromkeys(
    (
        "CUDA_DEVICE_MAX_CONNECTIONS",
        "CUDA_DEVICE_MAX_COPY_CONNECTIONS",
        "CUDA_GRAPHS_USE_NODE_PRIORITY",
        "CUDA_LAUNCH_BLOCKING",
        "CUDA_SCALE_LAUNCH_QUEUES",
        "DEEP_EP_USE_V1",
        "HYBRID_EP_ENABLE_MANUAL_NIC_MAPPING",
        "NCCL_BUFFSIZE",
        "NCCL_COLLNET_ENABLE",
        "NCCL_CROSS_NIC",
        "NCCL_CTA_POLICY",
        "NCCL_CUMEM_ENABLE",
        "NCCL_CUMEM_HOST_ENABLE",
        "NCCL_DMABUF_ENABLE",
        "NCCL_GRAPH_MIXING_SUPPORT",
        "NCCL_GRAPH_REGISTER",
        "NCCL_IB_ADAPTIVE_ROUTING",
        "NCCL_IB_DISABLE",
        "NCCL_IB_QPS_PER_CONNECTION",
        "NCCL_IB_SL",
        "NCCL_IB_SPLIT_DATA_ON_QPS",
        "NCCL_IB_TC",
        "NCCL_IB_TIMEOUT",
        "NCCL_LAUNCH_MODE",
        "NCCL_LL128_BUFFSIZE",
        "NCCL_LL_BUFFSIZE",
        "NCCL_LOCAL_REGISTER",
        "NCCL_MAX_CTAS",
        "NCCL_MAX_NCHANNELS",
        "NCCL_MAX_P2P_NCHANNELS",
        "NCCL_MIN_CTAS",
        "NCCL_MIN_NCHANNELS",
        "NCCL_MIN_P2P_NCHANNELS",
        "NCCL_MNNVL_ENABLE",
        "NCCL_NCHANNELS_PER_NET_PEER",
        "NCCL_NET_GDR_C2C",
        "NCCL_NTHREADS",
        "NCCL_NVLSTREE_MAX_CHUNKSIZE",
        "NCCL_NVLS_CHUNKSIZE",
        "NCCL_NVLS_ENABLE",
        "NCCL_NVLS_NCHANNELS",
        "NCCL_NVTX_DISABLE",
        "NCCL_P2P_DIRECT_DISABLE",
        "NCCL_P2P_DISABLE",
        "NCCL_P2P_LL_THRESHOLD",
        "NCCL_P2P_NET_CHUNKSIZE",
        "NCCL_P2P_NVL_CHUNKSIZE",
        "NCCL_P2P_PCI_CHUNKSIZE",
        "NCCL_PROGRAM_ENABLE",
        "NCCL_PXN_C2C",
        "NCCL_PXN_DISABLE",
        "NCCL_RUNTIME_CONNECT",
        "NCCL_SHM_DISABLE",
        "NCCL_SYM_CTAS",
        "NCCL_WIN_ENABLE",
        "NCCL_WORK_FIFO_BYTES",
        "NUM_OF_HYBRID_EP_RANKS_PER_NVLINK_DOMAIN",
        "NUM_OF_TOKENS_PER_CHUNK_COMBINE_API",
        "NUM_OF_TOKENS_PER_CHUNK_DISPATCH_API",
        "NUM_OF_TOKENS_PER_CHUNK_PREPROCESSING_API",
        "NVLINK_DOMAIN_SIZE",
        "NVSHMEM_DISABLE_NVLS",
        "NVSHMEM_DISABLE_P2P",
        "NVSHMEM_ENABLE_NIC_PE_MAPPING",
        "NVSHMEM_IBGDA_NUM_RC_PER_PE",
        "NVSHMEM_IB_ENABLE_IBGDA",
        "NVSHMEM_QP_DEPTH",
        "NVTE_ALLOW_NONDETERMINISTIC_ALGO",
        "NVTE_BATCH_MHA_P2P_COMM",
        "NVTE_BIAS_GELU_NVFUSION",
        "NVTE_BUILD_WITH_NCCL_EP",
        "NVTE_BWD_LAYERNORM_SM_MARGIN",
        "NVTE_CPU_OFFLOAD_V1",
        "NVTE_CUTEDSL_FUSED_GROUPED_MLP",
        "NVTE_FLASH_ATTN",
        "NVTE_FP8_DPA_BWD",
        "NVTE_FUSED_ATTN",
        "NVTE_FUSED_ATTN_FORCE_WORKSPACE_OPT",
        "NVTE_FUSED_RING_ATTENTION_USE_SCAN",
        "NVTE_FWD_LAYERNORM_SM_MARGIN",
        "NVTE_NORM_BWD_USE_CUDNN",
        "NVTE_NORM_FWD_USE_CUDNN",
        "NVTE_TORCH_COMPILE",
        "NVTE_UNFUSED_ATTN",
        "NVTE_USE_CUTLASS_GROUPED_GEMM",
        "NVTE_USE_FAST_MATH",
        "OMP_NUM_THREADS",
        "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE",
        "TORCH_NCCL_ASYNC_ERROR_HANDLING",
        "TORCH_NCCL_AVOID_RECORD_STREAMS",
        "TORCH_NCCL_BLOCKING_WAIT",
        "TORCH_NCCL_CUDA_EVENT_CACHE",
        "TORCH_NCCL_ENABLE_MONITORING",
        "TORCH_NCCL_ENABLE_TIMING",
        "TORCH_NCCL_HIGH_PRIORITY",
        "TORCH_NCCL_NAN_CHECK",
        "TORCH_NCCL_TRACE_BUFFER_SIZE",
        "TORCH_NCCL_USE_COMM_NONBLOCKING",
        "TORCH_NCCL_USE_TENSOR_REGISTER_ALLOCATOR_HOOK",
        "UB_SKIPMC",
        "USE_MNNVL",
    ),
    _NOTHING,
) | {
    "CUDA_DEVICE_ORDER": _ORDERS,
    "CUDA_MODULE_LOADING": _LAZY_LOADING,
    "NCCL_ALGO": _NCCL_ALGORITHMS,
    "NCCL_DEBUG": _NCCL_DEBUG,
    "NCCL_NET_GDR_LEVEL": _PATH_LEVELS,
    "NCCL_P2P_LEVEL": _PATH_LEVELS,
    "NCCL_PROTO": _NCCL_PROTOCOLS,
    "PYTORCH_ALLOC_CONF": _ALLOCATOR_OPTIONS,
    "PYTORCH_CUDA_ALLOC_CONF": _ALLOCATOR_OPTIONS,
    "PYTORCH_HIP_ALLOC_CONF": _ALLOCATOR_OPTIONS,
}
"""Variable name -> the words its value may hold beside numbers and true/false words."""


def _is_safe_value(value: str, words: frozenset[str]) -> bool:
    """Whether `value` holds nothing but numbers, flags and the known `words` of its variable."""
    if len(value) > _VALUE_LIMIT or not value.isascii() or not value.isprintable():
        return False
    tokens = [token for token in _SEPARATORS.split(value) if token]
    return all(
        _NUMBER.fullmatch(token) or token.lower() in _FLAGS or token.lower() in words
        for token in tokens
    )


def allowed_environment(
    variables: Mapping[str, str] | Iterable[tuple[str, str]],
) -> dict[str, str]:
    """The performance-relevant variables among `variables`, sorted by name; the first value wins.

    A variable passes by its exact name, and only with a value made of numbers, true/false words
    and the words known for it: a path or host name never does, whatever the variable.
    """
    pairs = variables.items() if isinstance(variables, Mapping) else variables
    found: dict[str, str] = {}
    for name, raw in pairs:
        words = _ALLOWED_VARIABLES.get(name)
        if words is None or name in found:
            continue
        value = raw.strip().strip("\"'").strip()
        if value and _is_safe_value(value, words):
            found[name] = value
    return dict(sorted(found.items()))


# --- Nsight Systems exports -----------------------------------------------------------------

_VERSION = re.compile(r"\d{1,5}(?:\.\d{1,5}){0,3}")
_GPU_WORDS = frozenset(
    {
        "NVIDIA", "Tesla", "Quadro", "GeForce", "TITAN", "RTX", "GTX", "PRO", "AMD", "Instinct",
        "Radeon", "Graphics", "Device", "GPU", "PCIe", "PCIE", "SXM", "HBM", "HBM3e", "NVL", "GB",
        "Ti", "SUPER", "Ada", "Generation", "Max", "Q", "Laptop", "Server", "Workstation",
        "Edition", "Blackwell", "Hopper", "Grace", "Rubin", "Ultra", "Vera", "Superchip", "Thor",
        "Orin", "Jetson", "AGX", "DGX", "Spark", "MIG", "D", "CPX", "X", "Xp", "V",
    }
)  # fmt: skip
_GPU_MODEL = re.compile(r"[A-Za-z]{0,4}\d{1,4}[A-Za-z]{0,4}\d?")


def gpu_name(text: str) -> str | None:
    """`text` if it reads like a GPU's product name ("NVIDIA H100 80GB HBM3"), else None."""
    tokens = [token for token in re.split(r"[ \-/().]+", text) if token]
    fits = 0 < len(tokens) <= 12 and all(
        token in _GPU_WORDS or _GPU_MODEL.fullmatch(token) for token in tokens
    )
    return text if fits and text.isascii() and text.isprintable() and len(text) <= 80 else None


@dataclass(frozen=True, slots=True)
class NsysMetadata:
    """The allow-listed facts about an export and the machine it was captured on."""

    product_version: str | None = None
    schema_version: str | None = None
    driver_version: str | None = None
    cuda_version: str | None = None
    session_start_epoch_ns: int | None = None
    traces_memory: bool | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def producer(self) -> str:
        """The profiler as a reader knows it, such as "Nsight Systems 2025.3.2"."""
        if self.product_version is None:
            return "Nsight Systems"
        return "Nsight Systems " + ".".join(self.product_version.split(".")[:3])


_EXPORT_TABLES = ("META_DATA_EXPORT", "EXPORT_META_DATA")
_EXPORT_PROPERTIES = (
    "EXPORT_PRODUCT_VERSION",
    "EXPORT_SCHEMA_VERSION",
    "EXPORT_PARAM_TIME_NORMALIZE",
    "EXPORT_PARAM_TIME_SHIFT",
)
_SYSTEM_PROPERTIES = ("NvDriverVersion", "CudaDriverVersion")


def nsys_metadata(source: "TableSource") -> NsysMetadata:
    """The allow-listed metadata of an export; only the rows named here are ever fetched."""
    from moe_advisor.table_source import Among, Column

    pair = (Column("name", ""), Column("value", ""))
    export: dict[str, str] = {}
    for table in _EXPORT_TABLES:
        export |= dict(source.fetch(table, pair, Among("name", _EXPORT_PROPERTIES)).iter_rows())
    system = dict(
        source.fetch("TARGET_INFO_SYSTEM_ENV", pair, Among("name", _SYSTEM_PROPERTIES)).iter_rows()
    )
    names = [f"PROCESS_{i}:ENVIRONMENT_VARIABLE" for i in range(_PROCESSES_LOOKED_AT)]
    variables = source.fetch("META_DATA_CAPTURE", pair, Among("name", tuple(names)))
    memory = source.fetch(
        "META_DATA_CAPTURE", pair, Among("name", ("PROCESS_0:COLLECT_GPU_MEMORY_USAGE",))
    )["value"].to_list()
    return NsysMetadata(
        product_version=_version(export.get("EXPORT_PRODUCT_VERSION")),
        schema_version=_version(export.get("EXPORT_SCHEMA_VERSION")),
        driver_version=_version(system.get("NvDriverVersion")),
        cuda_version=_cuda_version(system.get("CudaDriverVersion")),
        session_start_epoch_ns=_session_start(source, export),
        traces_memory=memory[0].lower() == "true" if memory else None,
        environment=allowed_environment(
            (name, value)
            for name, found, value in (text.partition("=") for text in variables["value"])
            if found
        ),
    )


_FLAG = re.compile(r"true|false", re.IGNORECASE)
_WHOLE_NUMBER = re.compile(r"-?\d{1,18}")
_EXPORT_FACTS = {
    "EXPORT_PRODUCT_VERSION": _VERSION,
    "EXPORT_SCHEMA_VERSION": _VERSION,
    "EXPORT_PARAM_TIME_NORMALIZE": _FLAG,
    "EXPORT_PARAM_TIME_SHIFT": _WHOLE_NUMBER,
}
_SHAREABLE: dict[str, dict[str, re.Pattern[str]]] = {
    **dict.fromkeys(_EXPORT_TABLES, _EXPORT_FACTS),
    "TARGET_INFO_SYSTEM_ENV": {"NvDriverVersion": _VERSION, "CudaDriverVersion": _VERSION},
    "META_DATA_CAPTURE": {"PROCESS_0:COLLECT_GPU_MEMORY_USAGE": _FLAG},
}


def shareable_fact(table: str, name: str, value: str) -> str | None:
    """`value` of the row `name` of a table of names and values, if it may be shared, else None."""
    pattern = _SHAREABLE.get(table, {}).get(name)
    return value if pattern is not None and pattern.fullmatch(value) else None


_PROCESSES_LOOKED_AT = 16
"""A capture command launches one process; attaching to more than 16 has not been seen."""


def _version(text: str | None) -> str | None:
    return text if text is not None and _VERSION.fullmatch(text) else None


def _cuda_version(text: str | None) -> str | None:
    """CUDA's number for 13.0 is 13000, for 12.4 it is 12040."""
    if text is None or not re.fullmatch(r"\d{4,6}", text):
        return _version(text)
    return f"{int(text) // 1000}.{int(text) % 1000 // 10}"


def _session_start(source: "TableSource", export: Mapping[str, str]) -> int | None:
    """What to add to a time of the export to get UTC ns."""
    from moe_advisor.table_source import Column

    if export.get("EXPORT_PARAM_TIME_NORMALIZE", "").lower() == "true":
        return 0  # the exporter has already made the times UTC
    rows = source.fetch("TARGET_INFO_SESSION_START_TIME", (Column("utcEpochNs"),))
    starts = [start for start in rows["utcEpochNs"] if start > 0]
    shift = export.get("EXPORT_PARAM_TIME_SHIFT", "0")
    if not starts or not re.fullmatch(r"-?\d{1,18}", shift):
        return None
    return int(starts[0]) - int(shift)


def nsys_devices(source: "TableSource") -> "Callable[[int, int], Device]":
    """A function from (pid, CUDA ordinal in that process) to the GPU's allow-listed properties."""
    from moe_advisor.model import Device
    from moe_advisor.table_source import Column

    gpus = {
        row["id"]: row
        for row in source.fetch(
            "TARGET_INFO_GPU",
            (
                Column("id"),
                Column("name", ""),
                Column("totalMemory"),
                Column("memoryBandwidth"),
                Column("smCount"),
                Column("computeMajor"),
                Column("computeMinor"),
                Column("cuDevice"),
            ),
        ).iter_rows(named=True)
    }
    mapping = {
        (row["pid"], row["cudaId"]): row["gpuId"]
        for row in source.fetch(
            "TARGET_INFO_CUDA_DEVICE", (Column("gpuId"), Column("cudaId"), Column("pid"))
        ).iter_rows(named=True)
    }

    def device(pid: int, ordinal: int) -> Device:
        gpu = gpus.get(mapping.get((pid, ordinal)))
        if gpu is None and not mapping:
            by_ordinal = [row for row in gpus.values() if row["cuDevice"] == ordinal]
            gpu = by_ordinal[0] if len(by_ordinal) == 1 else gpus.get(ordinal)
        return _device(gpu) if gpu else Device()

    return device


def _device(gpu: Mapping[str, int | str]) -> "Device":
    from moe_advisor.model import Device

    def positive(key: str) -> int | None:
        return int(gpu[key]) if int(gpu[key]) > 0 else None

    major, minor = positive("computeMajor"), int(gpu["computeMinor"])
    return Device(
        name=gpu_name(str(gpu["name"])),
        memory_bytes=positive("totalMemory"),
        memory_bandwidth_bytes_per_s=positive("memoryBandwidth"),
        sm_count=positive("smCount"),
        compute_capability=f"{major}.{max(minor, 0)}" if major else None,
    )
