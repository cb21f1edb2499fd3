"""Spellings of a change, and the copyable text of each framework."""

from moe_advisor.advise.changes import spell
from moe_advisor.advise.rule import ChangeSpec
from moe_advisor.paste import bridge_overrides, bridge_python, environment_lines, megatron_lm_flags
from moe_advisor.result import Change


def _spelt(key: str, to: object, version: object = None, **config: object) -> list[Change]:
    made, _ = spell(ChangeSpec(key=key, to=to), {key: to} | config, {}, version)
    return made


def test_a_change_is_copyable_in_all_three_forms() -> None:
    made = _spelt("overlap_moe_expert_parallel_comm", True)
    made += _spelt("cuda_graph_modules", ["attn", "moe_router"])
    made += _spelt("moe_token_dispatcher_type", "flex")
    made += _spelt("recompute_method", None)
    assert bridge_python(made) == [
        "cfg.comm_overlap.overlap_moe_expert_parallel_comm = True",
        "cfg.model.cuda_graph_modules = ['attn', 'moe_router']",
        "cfg.model.moe_token_dispatcher_type = 'flex'",
        "cfg.model.recompute_method = None",
    ]
    assert bridge_overrides(made) == [
        "comm_overlap.overlap_moe_expert_parallel_comm=true",
        "'model.cuda_graph_modules=[attn,moe_router]'",
        "model.moe_token_dispatcher_type=flex",
        "model.recompute_method=null",
    ]
    assert megatron_lm_flags(made) == [
        "--overlap-moe-expert-parallel-comm",
        "--cuda-graph-modules attn moe_router",
        "--moe-token-dispatcher-type flex",
        "# remove: --recompute-method",
    ]


def test_a_list_of_graph_modules_is_no_change_for_a_release_whose_scope_is_one_word() -> None:
    spec = ChangeSpec(key="cuda_graph_modules", to=["attn", "moe_router"])
    assert spell(spec, {}, {}, "0.15") == ([], "cuda_graph_modules needs Megatron-Core 0.16")
    (first, *_), _ = spell(spec, {}, {}, "0.16")
    assert first.key == "model.cuda_graph_scope"


def test_environment_variables_are_exported() -> None:
    spec = ChangeSpec(key="CUDA_DEVICE_MAX_CONNECTIONS", to="32", framework="env")
    made, _ = spell(spec, {}, {"CUDA_DEVICE_MAX_CONNECTIONS": "1"})
    assert made[0].from_ == "1"
    assert environment_lines(made) == ["export CUDA_DEVICE_MAX_CONNECTIONS=32"]


def test_a_switch_that_is_on_by_default_has_a_flag_to_turn_it_off() -> None:
    off = _spelt("check_for_nan_in_loss", False)
    assert megatron_lm_flags(off) == ["--no-check-for-nan-in-loss-and-grad"]
    on = _spelt("overlap_p2p_comm", True)
    lm = next(item for item in on if item.framework == "megatron-lm")
    assert lm.key == "--no-overlap-p2p-communication"
    assert "remove" in (lm.note or "")
    assert megatron_lm_flags(on) == ["# remove: --no-overlap-p2p-communication"]
    bf16 = _spelt("grad_reduce_in_fp32", False)
    assert megatron_lm_flags(bf16) == ["--grad-reduce-in-bf16"]


def test_values_that_a_shell_or_hydra_would_read_are_quoted() -> None:
    made = _spelt("pipeline_model_parallel_layout", "Et*3|(tt|)*29m|L")
    assert megatron_lm_flags(made) == ["--pipeline-model-parallel-layout 'Et*3|(tt|)*29m|L'"]
    assert bridge_overrides(made) == ["'model.pipeline_model_parallel_layout=\"Et*3|(tt|)*29m|L\"'"]


def test_the_older_spelling_stands_beside_the_newer_one() -> None:
    made = _spelt("moe_flex_dispatcher_num_sms", 24, moe_flex_dispatcher_backend="deepep")
    assert [item.old_key for item in made] == ["model.moe_deepep_num_sms", "--moe-deepep-num-sms"]
    made = _spelt("moe_flex_dispatcher_num_sms", 32, moe_flex_dispatcher_backend="hybridep")
    assert made[0].old_key == "model.moe_hybridep_num_sms"


def test_an_older_release_gets_the_older_key_or_a_reason() -> None:
    made = _spelt("moe_flex_dispatcher_num_sms", 24, "0.17.0", moe_flex_dispatcher_backend="deepep")
    assert [item.key for item in made] == ["model.moe_deepep_num_sms", "--moe-deepep-num-sms"]
    spec = ChangeSpec(key="overlap_dispatch_backward_with_experts_wgrad", to=True)
    made, problem = spell(spec, {}, {}, "core_r0.16.0")
    assert made == []
    assert problem == "overlap_dispatch_backward_with_experts_wgrad needs Megatron-Core 0.18"


def test_a_value_can_need_a_newer_release_than_its_key() -> None:
    spec = ChangeSpec(key="moe_flex_dispatcher_backend", to="ncclep")
    _, problem = spell(spec, {}, {}, "0.17.0")
    assert problem == "moe_flex_dispatcher_backend needs Megatron-Core 0.19"
