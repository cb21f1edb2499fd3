"""Training logs of both frameworks, with their different units."""

import gzip
from pathlib import Path

import pytest

from moe_advisor.errors import ConfigError
from moe_advisor.ingest import training_log


def _line(iteration: int, ms: float, tflops: float | None = None) -> str:
    throughput = f" throughput per GPU (TFLOP/s/GPU): {tflops:.1f} |" if tflops else ""
    return (
        f" [2026-08-01 10:00:00.123456] iteration {iteration:8d}/     100 | consumed samples: "
        f"        1024 | elapsed time per iteration (ms): {ms:.1f} |{throughput}"
        " learning rate: 1.000000E-04 | global batch size:  1024 | lm loss: 1.0E+01 |"
        " number of skipped iterations:   0 | number of nan iterations:   0 |"
    )


MEGATRON_LM = [
    "using world size: 16, data-parallel size: 16, context-parallel size: 1, tensor-model-parallel",
    "0: ------------------------ arguments ------------------------",
    "0:   expert_model_parallel_size ...................... 16",
    "0:   seq_length ...................................... 4096",
    "0: -------------------- end of arguments ---------------------",
    _line(1, 90000.0, 30.0),
    "[Rank 0] (after 2 iterations) memory (MB) | allocated: 1024.00 | max allocated: 2048.00 "
    "| reserved: 4096.00 | max reserved: 5120.00",
    *[_line(n, 31310.0 + n, 200.0 + n) for n in range(6, 11)],
    _line(11, 50000.0, 100.0),
]


def test_megatron_lm_lines_give_times_throughput_and_mib_as_gib() -> None:
    log = training_log.parse(MEGATRON_LM)
    assert log.framework == "megatron-lm"
    assert [item.number for item in log.iterations] == [1, 6, 7, 8, 9, 10, 11]
    assert log.step_ms(skip=[11]) == 31318.0
    assert log.tflops_per_gpu(skip=[11]) == 208.0
    assert log.memory_peak_gib() == 2.0
    assert log.memory[0].max_reserved_gib == 5.0
    assert (log.world_size, log.seq_length, log.global_batch_size()) == (16, 4096, 1024)


def test_warm_up_iterations_do_not_count() -> None:
    log = training_log.parse(MEGATRON_LM)
    assert 1 not in [item.number for item in log.steady()]


def test_the_argument_dump_in_the_log_is_its_configuration() -> None:
    config = training_log.parse(MEGATRON_LM).config
    assert config["expert_model_parallel_size"].value == 16
    assert config["expert_model_parallel_size"].source == "log"


def test_tokens_per_second_and_gpu_follow_from_batch_sequence_and_world() -> None:
    log = training_log.parse(MEGATRON_LM)
    expected = 1024 * 4096 / 31.318 / 16
    assert log.tokens_per_s_per_gpu(skip=[11]) == pytest.approx(expected)


def test_bridge_lines_give_seconds_as_ms_and_decimal_gigabytes_as_gib() -> None:
    log = training_log.parse(
        [
            "Step Time : 20.99s GPU utilization: 287.3MODEL_TFLOP/s/GPU",
            "[Rank 0] (after 2 iterations) memory (GB) | mem-allocated-gigabytes: 30.0 "
            "| mem-max-allocated-gigabytes: 62.166 | mem-max-reserved-gigabytes: 70.0 "
            "| mem-alloc-retires: 3",
        ]
    )
    assert log.framework == "megatron-bridge"
    assert log.step_ms() == 20990.0
    assert log.tflops_per_gpu() == 287.3
    assert log.memory_peak_gib() == pytest.approx(62.166e9 / 2**30)
    assert log.memory[0].alloc_retries == 3


def test_bridge_prints_both_lines_and_they_belong_together() -> None:
    log = training_log.parse(
        [
            "Step Time : 21.00s GPU utilization: 280.0MODEL_TFLOP/s/GPU",
            _line(10, 21000.0).replace(".123456]", "]"),
        ]
    )
    assert [(x.number, x.ms, x.tflops_per_gpu) for x in log.iterations] == [(10, 21000.0, 280.0)]


def test_a_log_too_short_for_a_warm_up_gives_its_later_half() -> None:
    log = training_log.parse([_line(1, 900.0), _line(2, 100.0)])
    assert log.step_ms() == 100.0


def test_what_is_not_logged_is_none() -> None:
    log = training_log.parse([_line(1, 900.0)])
    assert log.tflops_per_gpu() is None
    assert log.memory_peak_gib() is None
    assert log.tokens_per_s_per_gpu() is None


def test_a_gzip_log_is_read_and_a_foreign_file_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "train.log.gz"
    path.write_bytes(gzip.compress("\n".join(MEGATRON_LM).encode()))
    assert len(training_log.load(path).iterations) == 7
    other = tmp_path / "other.log"
    other.write_text("hello\n")
    with pytest.raises(ConfigError, match="no progress lines"):
        training_log.load(other)
    with pytest.raises(ConfigError, match="can't be read"):
        training_log.load(tmp_path / "gone.log")
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ConfigError, match="can't be read"):
        training_log.load(path)
