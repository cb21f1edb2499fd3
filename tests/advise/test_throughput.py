"""Model FLOPs from a configuration: the published rates of published step times."""

from typing import Any

import pytest

from moe_advisor.advise.throughput import flops_per_step, moe_layers, precision, rates

QWEN3_30B: dict[str, Any] = {
    "num_layers": 48, "hidden_size": 2048, "num_attention_heads": 32, "num_query_groups": 4,
    "kv_channels": 128, "num_moe_experts": 128, "moe_router_topk": 8, "moe_ffn_hidden_size": 768,
    "gated_linear_unit": True, "vocab_size": 151936, "seq_length": 4096,
    "global_batch_size": 1024,
}  # fmt: skip
QWEN3_235B = QWEN3_30B | {
    "num_layers": 94, "hidden_size": 4096, "num_attention_heads": 64,
    "moe_ffn_hidden_size": 1536, "global_batch_size": 8192,
}  # fmt: skip
DEEPSEEK_V3: dict[str, Any] = {
    "num_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
    "multi_latent_attention": True, "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_head_dim": 128,
    "qk_pos_emb_head_dim": 64, "v_head_dim": 128, "num_moe_experts": 256, "moe_router_topk": 8,
    "moe_ffn_hidden_size": 2048, "ffn_hidden_size": 18432,
    "moe_shared_expert_intermediate_size": 2048, "moe_layer_freq": "([0]*3+[1]*58)",
    "gated_linear_unit": True, "padded_vocab_size": 129280, "mtp_num_layers": 1,
    "seq_length": 4096, "global_batch_size": 4096,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "step_ms", "gpus", "published"),
    [
        (QWEN3_30B, 24713.8, 16, 244.039),
        (QWEN3_30B, 20992.03, 16, 287.305),
        (QWEN3_235B, 14920.8, 256, 1300.0),
        (QWEN3_235B, 17905.0, 256, 1084.0),
        (DEEPSEEK_V3 | {"global_batch_size": 16384}, 61756.0, 1024, 276.0),
        (DEEPSEEK_V3, 13841.0, 256, 1231.0),
        (DEEPSEEK_V3, 10667.0, 256, 1597.0),
    ],
)
def test_published_step_times_give_the_published_rates(
    config: dict[str, Any], step_ms: float, gpus: int, published: float
) -> None:
    found = rates(config, step_ms, gpus, None).tflops_per_gpu
    assert found == pytest.approx(published, rel=1e-3)


def test_what_is_missing_is_named_and_the_rate_is_absent() -> None:
    bare = {key: QWEN3_30B[key] for key in ("num_layers", "hidden_size", "num_moe_experts")}
    flops, missing = flops_per_step(bare)
    assert flops is None
    assert missing == [
        "num_attention_heads", "seq_length", "global_batch_size", "padded_vocab_size",
        "moe_router_topk", "ffn_hidden_size",
    ]  # fmt: skip
    assert rates(bare, 1000.0, 16, None).missing == tuple(missing)


def test_the_figure_in_the_log_goes_before_the_count() -> None:
    found = rates(QWEN3_30B, 24713.8, 16, 240.0)
    assert (found.tflops_per_gpu, found.missing) == (240.0, ())
    assert found.tokens_per_s_per_gpu == pytest.approx(10607.2, rel=1e-5)


@pytest.mark.parametrize(
    ("pattern", "kinds"),
    [
        (2, [True, False, True, False]),
        ("1", [True] * 4),
        ("([0]*1+[1]*3)", [False, True, True, True]),
        ("[0,1]*2", [False, True, False, True]),
        (["0", "1", "1", "1"], [False, True, True, True]),
        ("__import__('os')", None),
        ("[1]*99999", None),
    ],
)
def test_a_layer_pattern_is_read_and_never_evaluated(
    pattern: object, kinds: list[bool] | None
) -> None:
    config = {"num_layers": 4, "num_moe_experts": 8, "moe_layer_freq": pattern}
    assert moe_layers(config) == kinds


def test_the_precision_decides_the_peak() -> None:
    assert precision({}, "bf16") == "bf16"
    assert precision({"fp8": "e4m3", "fp8_recipe": "mxfp8"}, "bf16") == "mxfp8"
    assert precision({"fp8": "hybrid", "fp8_recipe": "tensorwise"}) == "fp8"
    assert precision({"fp4": "e2m1", "fp8": None}, "fp8") == "nvfp4"
    assert precision({}, "unheard-of") == "bf16"


def test_ranks_that_cannot_hold_the_model_are_no_count_of_gpus() -> None:
    config = QWEN3_30B | {"expert_model_parallel_size": 16}
    assert rates(config, 24713.8, 2, None).missing == ("world_size",)
    assert rates(config, 24713.8, 2, 240.0).tokens_per_s_per_gpu is None
    assert rates(config, 24713.8, 16, None).tokens_per_s_per_gpu is not None
