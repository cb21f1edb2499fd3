"""What may leave a trace, and what never does."""

from pathlib import Path

import pytest

from moe_advisor.ingest import nsys_sqlite
from moe_advisor.privacy import allowed_environment, display_name, gpu_name, safe_text
from tests.nsys_builder import GENERATIONS, NsysExport, message, process, two_steps

CANARY = "CANARYsecret"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain name<int, 4>(args)", "plain name<int, 4>(args)"),
        ("a\tb\r\nc\u2028d", "a b c d"),
        ("\x1b[31mred\x1b[0m \x1b]0;title\x07x", "red x"),
        ("\u202eevil\u2066\u200b\ufeff", "evil"),
        ("nul\x00bell\x07\x7f", "nulbell"),
        ("Grüße 漢字", "Grüße 漢字"),
        ("lone \ud800 surrogate", "lone  surrogate"),
    ],
)
def test_text_is_made_safe_for_one_line(text: str, shown: str) -> None:
    assert safe_text(text, 100) == shown


def test_text_is_cut_with_a_mark() -> None:
    assert safe_text("abcdef", 6) == "abcdef"
    assert safe_text("abcdefg", 6) == "abcde…"
    assert len(safe_text("x" * 10_000_000, 50)) == 50


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/user/run.sqlite", "run.sqlite"),
        (Path("folder/rank0.json.gz"), "rank0.json.gz"),
        (r"C:\Users\me\run.nsys-rep", "run.nsys-rep"),
        ("/home/user/folder/", "folder"),
        ("..", "input"),
        ("/", "input"),
        ("a\x1b[2Jb", "ab"),
    ],
)
def test_only_the_base_name_of_a_path_is_shown(path: str, name: str) -> None:
    assert display_name(path) == name


def test_performance_variables_pass_with_numbers_flags_and_known_words() -> None:
    variables = {
        "CUDA_DEVICE_MAX_CONNECTIONS": '"8"',
        "NCCL_ALGO": "allreduce:tree,ring;^NVLS",
        "NCCL_NET_GDR_LEVEL": "PHB",
        "NCCL_PROTO": "^LL128",
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,roundup_power2_divisions:[256:1,>:8]",
        "USE_MNNVL": "1",
    }
    allowed = allowed_environment(variables)
    assert allowed == {**variables, "CUDA_DEVICE_MAX_CONNECTIONS": "8"}
    assert list(allowed) == sorted(allowed)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_TOKEN", "1"),
        ("HOME", "1"),
        ("NCCL_SOCKET_IFNAME", "eth0"),
        ("nccl_algo", "Ring"),
        ("NCCL_ALGO", "node17"),
        ("NCCL_DEBUG", "/tmp/log"),
        ("NCCL_P2P_LEVEL", "secret"),
        ("CUDA_DEVICE_MAX_CONNECTIONS", "1 host.example"),
        ("OMP_NUM_THREADS", "8\n"),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True,/etc:1"),
        ("NVTE_FLASH_ATTN", "1" * 500),
        ("USE_MNNVL", ""),
    ],
)
def test_other_variables_and_values_never_pass(name: str, value: str) -> None:
    expected = {"OMP_NUM_THREADS": "8"} if value == "8\n" else {}
    assert allowed_environment([(name, value)]) == expected


def test_the_first_value_of_a_variable_wins() -> None:
    pairs = [("USE_MNNVL", "1"), ("USE_MNNVL", "0")]
    assert allowed_environment(pairs) == {"USE_MNNVL": "1"}


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA H200",
        "NVIDIA H100 80GB HBM3",
        "NVIDIA A100-SXM4-80GB",
        "NVIDIA GB200",
        "NVIDIA GH200 480GB",
        "NVIDIA H100 PCIe",
        "NVIDIA RTX PRO 6000 Blackwell Server Edition",
        "Tesla V100-SXM2-32GB",
        "NVIDIA GeForce RTX 4090",
        "AMD Instinct MI300X",
    ],
)
def test_product_names_of_gpus_pass(name: str) -> None:
    assert gpu_name(name) == name


@pytest.mark.parametrize("name", ["", "node-17.cluster", "NVIDIA CANARY", "/dev/gpu0", "x" * 200])
def test_other_names_are_no_gpus(name: str) -> None:
    assert gpu_name(name) is None


def with_canaries(schema: str) -> NsysExport:
    """An export that has a canary in every text cell that is no kernel, call or range name."""
    export = two_steps(schema)
    export.nccl(990, 1_990, "ncclAllReduce", message(5, 9, 64))
    number = export.string(CANARY + " unused string")
    export.add("ThreadNames", nameId=number, priority=1, globalTid=process(10) | 1)
    export.add("ProcessStreams", globalPid=process(10), filenameId=number, contentId=number)
    export.add("PROCESSES", globalPid=process(10), pid=10, name=f"/home/{CANARY}/python")
    export.add(
        "TARGET_INFO_GPU", id=0, name=CANARY, busLocation=CANARY, totalMemory=1, smCount=1,
        uuid=CANARY, chipName=CANARY, cuDevice=0, computeMajor=9, computeMinor=0,
    )  # fmt: skip
    export.add("TARGET_INFO_CUDA_DEVICE", gpuId=0, cudaId=0, pid=10)
    export.add("TARGET_INFO_SESSION_START_TIME", utcEpochNs=5, utcTime=CANARY, localTime=CANARY)
    export.add("DIAGNOSTIC_EVENT", severity=3, text=CANARY, globalPid=process(10))
    export.add(
        "CUDA_GPU_MEMORY_USAGE_EVENTS", start=0, globalPid=process(10), deviceId=0, bytes=8,
        memKind=2, memoryOperationType=0, name=CANARY,
    )  # fmt: skip
    export.add(
        "NVTX_PAYLOAD_SCHEMA_ENTRIES",
        domainId=1,
        schemaId=3,
        idx=0,
        name=CANARY,
        description=CANARY,
    )
    for table in ("ENUM_CUDA_MEMCPY_OPER", "ENUM_CUDA_MEM_KIND"):
        export.add(table, id=77, name=CANARY, label=CANARY)
    for table in ("META_DATA_EXPORT", "EXPORT_META_DATA", "META_DATA_CAPTURE"):
        for name in ("EXPORT_HOST", "EXPORT_PRODUCT_VERSION", "EXPORT_PARAM_TIME_SHIFT", CANARY):
            export.add(table, name=name, value=CANARY)
        for variable in ("HF_TOKEN", "NCCL_ALGO", "CUDA_DEVICE_MAX_CONNECTIONS", "NCCL_DEBUG"):
            export.add(table, name="PROCESS_0:ENVIRONMENT_VARIABLE", value=f'{variable}="{CANARY}"')
        export.add(table, name="PROCESS_0:COLLECT_GPU_MEMORY_USAGE", value=CANARY)
    for name in ("Hostname", "NvDriverVersion", "CudaDriverVersion", "DeviceEnvironment"):
        export.add("TARGET_INFO_SYSTEM_ENV", name=name, value=CANARY, devStateName=CANARY)
    for row in export.rows["NVTX_EVENTS"]:
        row["jsonText"] = CANARY
    return export


@pytest.mark.parametrize("schema", GENERATIONS)
def test_no_text_of_an_export_gets_in_but_names_of_work(schema: str, tmp_path: Path) -> None:
    folder = tmp_path / CANARY
    folder.mkdir()
    loaded = nsys_sqlite.load(with_canaries(schema).write(folder / "run.sqlite"))
    (rank,) = loaded.ranks
    assert rank.activities.height == 5
    assert rank.memory.height == 1
    assert CANARY not in repr(loaded)
    for table in (rank.activities, rank.calls, rank.ranges, rank.collectives, rank.memory):
        assert CANARY not in table.write_json()
