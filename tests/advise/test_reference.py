"""Published throughput beside a run of the same model on the same GPU."""

from moe_advisor.advise.reference import model_of, points_for

QWEN = {"num_moe_experts": 128, "moe_router_topk": 8, "hidden_size": 2048, "num_layers": 48}


def test_a_model_is_known_by_its_shape() -> None:
    assert model_of(QWEN) == "qwen3-30b-a3b"
    assert model_of(QWEN | {"hidden_size": 4096, "num_layers": 94}) == "qwen3-235b-a22b"
    assert model_of(QWEN | {"hidden_size": 1234}) is None
    assert model_of({"num_moe_experts": 128}) is None


def test_the_nearest_published_run_comes_first_with_what_differs() -> None:
    here = QWEN | {
        "expert_model_parallel_size": 16,
        "tensor_model_parallel_size": 1,
        "pipeline_model_parallel_size": 1,
        "virtual_pipeline_model_parallel_size": None,
        "micro_batch_size": 1,
        "global_batch_size": 512,
    }
    points = points_for(here, "H100", "fp8")
    assert points[0].tflops_per_gpu == 203.0
    assert points[0].differences == {"global_batch_size": (1024, 512)}
    assert [point.layout["ep"] for point in points][:2] == [16, 8]
    assert {point.precision for point in points[2:]} == {"bf16"}


def test_no_published_run_is_an_empty_list() -> None:
    assert points_for(QWEN, "A100") == []
    assert points_for(QWEN, None) == []
    assert points_for({}, "H100") == []


def test_flags_that_differ_are_named_and_what_was_not_published_is_not() -> None:
    here = QWEN | {
        "expert_model_parallel_size": 16,
        "global_batch_size": 1024,
        "overlap_moe_expert_parallel_comm": False,
        "moe_token_dispatcher_type": "flex",
    }
    points = {point.tflops_per_gpu: point for point in points_for(here, "H100", "bf16")}
    assert points[299.352].differences == {"overlap_moe_expert_parallel_comm": (True, False)}
    assert points[244.039].differences == {}
    paper = points_for(QWEN | {"hidden_size": 4096, "num_layers": 94}, "GB200", "bf16")[0]
    assert (paper.tflops_per_gpu, paper.layout) == (750.0, {"gpus": 256, "seq_length": 4096})
