"""Megatron-Core MoE trainer on a few GPUs of one host, to capture traces of its real code paths.

Each variant trains the same small mixture-of-experts GPT and changes one thing: the dispatcher,
recomputation, the parallelism, the schedule. One JSON line per variant and rank starts with
``RESULT`` and holds the step times without and with the profiler, in ms.

Needs PyTorch with CUDA and megatron-core 0.16; run it through ``capture.sh`` or ``run.sh``.
Variants named ``te...`` use Transformer Engine (2.13), the ``deepep`` ones DeepEP (1.2) as well; in
all others norms, attention and grouped GEMM are PyTorch's own.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812
from megatron.core import num_microbatches_calculator as microbatches
from megatron.core import parallel_state as ps
from megatron.core import tensor_parallel
from megatron.core import utils as mcore_utils
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.distributed.finalize_model_grads import finalize_model_grads
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.tensor_parallel import random as mcore_random
from megatron.core.transformer import transformer_block
from megatron.core.transformer.cuda_graphs import TECudaGraphHelper
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.transformer_config import TransformerConfig

WARMUP_STEPS = 4
NSYS_FLUSH_S = 2.5  # CUPTI hands over its buffers in the background; stopping at once loses some
NSYS_COLLECT_S = 20.0  # generous: a report is whole when its program has ended by itself
VOCAB = 32000
NORM_OF_TE = transformer_block.LayerNormImpl

if not hasattr(moe_utils, "te_general_gemm"):  # 0.16 reads it without Transformer Engine too
    moe_utils.te_general_gemm = None
if not hasattr(mcore_random, "FP8GlobalStateManager"):  # and these, for recomputed activations
    mcore_random.FP8GlobalStateManager = SimpleNamespace(is_fp8_enabled=lambda: False)
    mcore_random.activation_recompute_forward = lambda **_: contextlib.nullcontext()
    mcore_random.fp8_autocast = lambda **_: contextlib.nullcontext()


@dataclasses.dataclass(frozen=True)
class Variant:
    """Sizes, parallelism and the settings that differ from Megatron-Core's defaults."""

    seq: int = 4096
    mbs: int = 1
    nmb: int = 4
    layers: int = 4
    hidden: int = 2048
    ffn: int = 1024
    experts: int = 32
    topk: int = 8
    heads: int = 16
    tp: int = 1
    pp: int = 1
    vpp: int = 0
    cp: int = 1
    ep: int = 0  # 0: all ranks that pipeline parallelism leaves
    flash: bool = True  # False: Megatron-Core's own unfused attention
    cp_comm: str = "p2p"
    te: bool = False  # Transformer Engine's layers
    over: dict[str, Any] = dataclasses.field(default_factory=dict)
    ddp: dict[str, Any] = dataclasses.field(default_factory=dict)


def unfused(**settings: Any) -> Variant:
    """Variant with Megatron-Core's local, unfused attention, as in the first lab captures."""
    return Variant(flash=False, **settings)


def with_te(*parts: dict[str, Any], **settings: Any) -> Variant:
    """Variant of Transformer Engine's layers with Megatron-Core settings put together."""
    over = {k: x for part in parts for k, x in part.items()}
    return Variant(te=True, over={"moe_use_legacy_grouped_gemm": False, **over}, **settings)


SMALL: dict[str, Any] = {"seq": 512, "layers": 6, "hidden": 1024, "ffn": 512, "heads": 8}
BIG: dict[str, Any] = {
    "seq": 8192,
    "layers": 3,
    "hidden": 4096,
    "ffn": 2048,
    "experts": 16,
    "heads": 32,
}
WIDE: dict[str, Any] = {
    "nmb": 6,
    "layers": 3,
    "hidden": 3072,
    "ffn": 1536,
    "experts": 16,
    "topk": 4,
    "heads": 24,
}
TOP2: dict[str, Any] = {"nmb": 6, "experts": 16, "topk": 2, "ffn": 4096}
SHORT: dict[str, Any] = {"seq": 2048, "mbs": 2, "layers": 3, "experts": 64}
OVERLAP: dict[str, Any] = {"overlap_moe_expert_parallel_comm": True}
DIST_OPT: dict[str, Any] = {"use_distributed_optimizer": True}
DIST_OPT_OVERLAP: dict[str, Any] = {
    "use_distributed_optimizer": True,
    "overlap_grad_reduce": True,
    "overlap_param_gather": True,
    "bucket_size": 20_000_000,
}
SHARED: dict[str, Any] = {"moe_shared_expert_intermediate_size": 2048}
FULL: dict[str, Any] = {
    "recompute_granularity": "full",
    "recompute_method": "uniform",
    "recompute_num_layers": 1,
}
PADDED: dict[str, Any] = {
    "moe_expert_capacity_factor": 1.0,
    "moe_pad_expert_input_to_capacity": True,
}
FUSED: dict[str, Any] = {"moe_permute_fusion": True, "moe_router_fusion": True}
FP8: dict[str, Any] = {"fp8": "e4m3", "fp8_recipe": "blockwise"}
FP8_TENSOR: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": "tensorwise"}
FP8_DELAYED: dict[str, Any] = {"fp8": "hybrid", "fp8_recipe": "delayed"}
DEEPEP: dict[str, Any] = {
    "moe_token_dispatcher_type": "flex",
    "moe_flex_dispatcher_backend": "deepep",
    "moe_router_dtype": "fp32",
}
TE_GRAPHS: dict[str, Any] = {
    "cuda_graph_impl": "transformer_engine",
    "cuda_graph_scope": ["attn", "moe_router", "moe_preprocess"],
}
SELECTIVE: dict[str, Any] = {"recompute_granularity": "selective"}
VARIANTS: dict[str, Variant] = {
    "alltoall": unfused(),
    "overlap": unfused(over=OVERLAP),
    "full": unfused(over=FULL),
    "sel": unfused(over={**SELECTIVE, "recompute_modules": ["core_attn", "moe_act"]}),
    "seqexp": unfused(seq=1024, over={"moe_grouped_gemm": False}),
    "gradov": unfused(ddp={"overlap_grad_reduce": True}),
    "small": unfused(**SMALL),
    "allgather": unfused(over={"moe_token_dispatcher_type": "allgather"}),
    # flash attention; the baseline of the variants below
    "flash": Variant(),
    "flash_m2": Variant(nmb=2),
    "flash_m8": Variant(nmb=8),
    "flash_ov": Variant(over=OVERLAP),
    "flash_ov_m2": Variant(nmb=2, over=OVERLAP),
    "flash_ov_m8": Variant(nmb=8, over=OVERLAP),
    # more work per launch: bound by the GPU rather than by the host
    "mbs2": Variant(mbs=2),
    "mbs2_ov": Variant(mbs=2, over=OVERLAP),
    "big": Variant(**BIG),
    "big_ov": Variant(**BIG, over=OVERLAP),
    # sizes and micro-batches that no constant of the what-if was set with
    "wide": Variant(**WIDE),
    "wide_ov": Variant(**WIDE, over=OVERLAP),
    "wide_full": Variant(**WIDE, over=FULL),
    "k2": Variant(**TOP2),
    "k2_ov": Variant(**TOP2, over=OVERLAP),
    "flash_allgather": Variant(over={"moe_token_dispatcher_type": "allgather"}),
    "sel_moe": Variant(over={**SELECTIVE, "recompute_modules": ["moe"]}),
    "shared": Variant(nmb=2, over=SHARED),
    "shared_ov": Variant(nmb=2, over={**SHARED, "moe_shared_expert_overlap": True}),
    "distopt": Variant(nmb=2, ddp=DIST_OPT),
    "distopt_ov": Variant(nmb=2, ddp=DIST_OPT_OVERLAP),
    "expdp": Variant(nmb=2, ep=1, experts=8, ddp=DIST_OPT),
    "expdp_ov": Variant(nmb=2, ep=1, experts=8, ddp=DIST_OPT_OVERLAP),
    "tp2": Variant(nmb=2, tp=2, over={"sequence_parallel": True}),
    "cp2_p2p": Variant(nmb=2, cp=2, cp_comm="p2p"),
    "cp2_ag": Variant(nmb=2, cp=2, cp_comm="all_gather"),
    "cp2_a2a": Variant(nmb=2, cp=2, cp_comm="a2a"),
    "pp2_m2": Variant(pp=2, nmb=2),
    "pp2_m4": Variant(pp=2, nmb=4),
    "pp2_m8": Variant(pp=2, nmb=8),
    "vpp2_m4": Variant(pp=2, vpp=2, nmb=4),
    "vpp2_m8": Variant(pp=2, vpp=2, nmb=8),
    # four GPUs
    "ep2": Variant(ep=2),
    "tp2_pp2": Variant(tp=2, pp=2, nmb=4, over={"sequence_parallel": True}),
    "pp4_m8": Variant(pp=4, nmb=8, layers=8),
    "vpp4_m8": Variant(pp=4, vpp=2, nmb=8, layers=8),
    "vpp2_ov_m8": Variant(
        pp=2, vpp=2, nmb=8, over={"overlap_p2p_comm": True, "batch_p2p_comm": False}
    ),
    # Transformer Engine: its norms, attention, linear layers and grouped GEMM
    "te": with_te(),
    "te_permute": with_te({"moe_permute_fusion": True}),
    "te_fused": with_te(FUSED),
    "te_ov": with_te(FUSED, OVERLAP),
    "te_ov_wgrad": with_te(FUSED, OVERLAP, {"delay_wgrad_compute": True}),
    "te_fp8": with_te(FUSED, FP8),
    "te_fp8_pad": with_te(FUSED, FP8, {"moe_router_padding_for_quantization": True}),
    "te_fp8_tensor": with_te(FUSED, FP8_TENSOR),
    "te_fp8_delayed": with_te(FUSED, FP8_DELAYED),
    "te_deepep": with_te(FUSED, DEEPEP),
    "te_deepep_ov": with_te(FUSED, DEEPEP, OVERLAP),
    "te_shared": with_te(FUSED, SHARED, nmb=2),
    "te_shared_ov": with_te(FUSED, SHARED, {"moe_shared_expert_overlap": True}, nmb=2),
    "te_tp2": with_te(FUSED, {"sequence_parallel": True}, nmb=2, tp=2),
    "te_cp2": with_te(FUSED, nmb=2, cp=2),
    "te_cp2_a2a": with_te(FUSED, nmb=2, cp=2, cp_comm="a2a"),
    "te_sel": with_te(
        FUSED, SELECTIVE, {"recompute_modules": ["core_attn", "moe_act", "layernorm"]}
    ),
    "te_small": with_te(FUSED, **SMALL),
    "te_small_graph": with_te(FUSED, TE_GRAPHS, **SMALL),
    "te_graph": with_te(FUSED, TE_GRAPHS),
    "te_short": with_te(**SHORT),
    "te_short_fused": with_te(FUSED, **SHORT),
    "te_short_graph": with_te(FUSED, TE_GRAPHS, **SHORT),
    "small_flash": Variant(**SMALL),
    # Whole layers in CUDA graphs: without fused permutation only a padded dispatch captures.
    "small_pad": Variant(**SMALL, over=PADDED),
    "small_pad_graph": Variant(
        **SMALL, over={**PADDED, "cuda_graph_impl": "local", "cuda_graph_scope": []}
    ),
}

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--variants", required=True, help="comma-separated; nsys takes one")
parser.add_argument("--mode", choices=["torch", "nsys", "none"], default="none")
parser.add_argument("--out", default=".")
parser.add_argument("--steps", type=int, default=10)
parser.add_argument("--prefix", default="mcore_")
parser.add_argument("--side-stream", action="store_true", help="never use the default stream")
ARGS = parser.parse_args()

RANK = int(os.environ["RANK"])
WORLD = int(os.environ["WORLD_SIZE"])
LOCAL = int(os.environ["LOCAL_RANK"])
DEVICE = torch.device("cuda", LOCAL)


class Norm(torch.nn.RMSNorm):
    """RMSNorm that also works under sequence parallelism, where Megatron's wrapper refuses."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-5, **_: Any):
        super().__init__(hidden_size, eps=eps)
        self.weight.sequence_parallel = config.sequence_parallel


class RingExchange(torch.autograd.Function):
    """Gives this rank its neighbour's keys and values, and the gradients their way back."""

    @staticmethod
    def _swap(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        ranks = dist.get_process_group_ranks(group)
        peer = ranks[(group.rank() + 1) % len(ranks)]
        tensor = tensor.contiguous()
        other = torch.empty_like(tensor)
        ops = [
            dist.P2POp(dist.isend, tensor, peer, group),
            dist.P2POp(dist.irecv, other, peer, group),
        ]
        for request in dist.batch_isend_irecv(ops):
            request.wait()
        return other

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """Receive the neighbour's tensor of the same shape."""
        ctx.group = group
        return RingExchange._swap(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Send the gradient back to where the tensor came from."""
        return RingExchange._swap(grad, ctx.group), None


class SequenceGather(torch.autograd.Function):
    """All-gather along the sequence, reduce-scatter of the gradient."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """Return [seq * ranks, ...]."""
        ctx.group = group
        out = tensor.new_empty((tensor.shape[0] * group.size(), *tensor.shape[1:]))
        dist.all_gather_into_tensor(out, tensor.contiguous(), group=group)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return [seq, ...]."""
        out = grad.new_empty((grad.shape[0] // ctx.group.size(), *grad.shape[1:]))
        dist.reduce_scatter_tensor(out, grad.contiguous(), group=ctx.group)
        return out, None


class HeadExchange(torch.autograd.Function):
    """All-to-all between sequence shards and head shards (first two dimensions swap roles)."""

    @staticmethod
    def _swap(tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        tensor = tensor.contiguous()
        out = torch.empty_like(tensor)
        dist.all_to_all_single(out, tensor, group=group)
        return out

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        """Take [ranks, ...], whose first dimension names the receiver."""
        ctx.group = group
        return HeadExchange._swap(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Take the way back."""
        return HeadExchange._swap(grad, ctx.group), None


class FlashAttention(torch.nn.Module):
    """PyTorch's flash attention, with context parallelism in the three usual ways.

    Stands in for Transformer Engine's: the communication has its volume and group, while the
    mask is left out where keys come from another rank.
    """

    def __init__(self, config: TransformerConfig, pg_collection: Any = None, **_: Any):
        super().__init__()
        self.comm = config.cp_comm_type
        self.group = ps.get_context_parallel_group() if config.context_parallel_size > 1 else None
        del pg_collection

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *_: Any,
        **__: Any,
    ) -> torch.Tensor:
        """Attend; shapes [sequence, batch, heads, channels] in, [sequence, batch, all] out."""
        causal, group = True, self.group
        if group is not None and self.comm == "a2a":
            query, key, value = (self._heads(x, group) for x in (query, key, value))
        elif group is not None:
            causal = False
            pair = torch.stack((key, value), 1)
            if self.comm == "p2p":
                pair = torch.cat((pair, RingExchange.apply(pair, group)))
            else:
                pair = SequenceGather.apply(pair, group)
            key, value = pair.unbind(1)
        out = F.scaled_dot_product_attention(
            *(x.permute(1, 2, 0, 3) for x in (query, key, value)), is_causal=causal
        ).permute(2, 0, 1, 3)
        if group is not None and self.comm == "a2a":
            out = self._sequence(out, group)
        return out.reshape(*out.shape[:2], -1)

    @staticmethod
    def _heads(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        s, b, h, d = x.shape
        n = group.size()
        x = x.view(s, b, n, h // n, d).permute(2, 0, 1, 3, 4)
        return HeadExchange.apply(x, group).reshape(n * s, b, h // n, d)

    @staticmethod
    def _sequence(x: torch.Tensor, group: dist.ProcessGroup) -> torch.Tensor:
        s, b, h, d = x.shape
        n = group.size()
        x = HeadExchange.apply(x.reshape(n, s // n, b, h, d), group)
        return x.permute(1, 2, 0, 3, 4).reshape(s // n, b, n * h, d)


def config_of(v: Variant) -> TransformerConfig:
    """Megatron-Core's configuration of the variant."""
    ep = v.ep or WORLD // v.pp
    settings: dict[str, Any] = {
        "num_layers": v.layers,
        "hidden_size": v.hidden,
        "num_attention_heads": v.heads,
        "ffn_hidden_size": v.ffn,
        "moe_ffn_hidden_size": v.ffn,
        "num_moe_experts": v.experts,
        "moe_router_topk": v.topk,
        "moe_token_dispatcher_type": "alltoall",
        "moe_grouped_gemm": True,
        "moe_use_legacy_grouped_gemm": True,
        "moe_aux_loss_coeff": 1e-2,
        "moe_router_load_balancing_type": "aux_loss",
        "tensor_model_parallel_size": v.tp,
        "pipeline_model_parallel_size": v.pp,
        "virtual_pipeline_model_parallel_size": v.vpp or None,
        "context_parallel_size": v.cp,
        "expert_model_parallel_size": ep,
        "expert_tensor_parallel_size": 1,
        "bf16": True,
        "pipeline_dtype": torch.bfloat16,
        "params_dtype": torch.bfloat16,
        "add_bias_linear": False,
        "gated_linear_unit": True,
        "activation_func": F.silu,
        "normalization": "RMSNorm",
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
        "gradient_accumulation_fusion": False,
        "bias_dropout_fusion": False,
        "persist_layer_norm": False,
        "apply_rope_fusion": False,
        "cp_comm_type": v.cp_comm,
        **v.over,
    }
    if not settings["moe_grouped_gemm"]:
        settings["moe_use_legacy_grouped_gemm"] = False
    return TransformerConfig(**settings)


started: list[tuple[int, ...]] = []  # the parallelism whose process groups stand, if any


def start_parallelism(v: Variant) -> None:
    """Make the process groups of the variant, unless the last variant's are the same."""
    wanted = (v.tp, v.pp, v.vpp, v.cp, v.ep or WORLD // v.pp)
    if started != [wanted]:
        if ps.model_parallel_is_initialized():
            ps.destroy_model_parallel()
        ps.initialize_model_parallel(
            tensor_model_parallel_size=v.tp,
            pipeline_model_parallel_size=v.pp,
            virtual_pipeline_model_parallel_size=v.vpp or None,
            context_parallel_size=v.cp,
            expert_model_parallel_size=v.ep or WORLD // v.pp,
            expert_tensor_parallel_size=1,
            distributed_timeout_minutes=1,
            create_gloo_process_groups=False,
        )
        started[:] = [wanted]
    tensor_parallel.model_parallel_cuda_manual_seed(
        1,
        te_rng_tracker=v.over.get("cuda_graph_impl") == "transformer_engine",
        use_cudagraphable_rng="cuda_graph_impl" in v.over,
        force_reset_rng=True,
    )


def build(v: Variant, config: TransformerConfig) -> list[DistributedDataParallel]:
    """Build the model chunks of this rank: one, or `vpp` of them."""
    if v.te:
        spec = get_gpt_layer_with_transformer_engine_spec(
            num_experts=v.experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
        )
        transformer_block.LayerNormImpl = NORM_OF_TE
    else:
        spec = get_gpt_layer_local_spec(
            num_experts=v.experts,
            moe_grouped_gemm=config.moe_grouped_gemm,
            moe_use_legacy_grouped_gemm=config.moe_use_legacy_grouped_gemm,
            normalization="RMSNorm",
        )
        spec.submodules.input_layernorm = spec.submodules.pre_mlp_layernorm = Norm
        transformer_block.LayerNormImpl = Norm
        if v.flash:
            spec.submodules.self_attention.submodules.core_attention = FlashAttention
    chunks = []
    for stage in range(v.vpp or 1):
        place: dict[str, Any] = {"vp_stage": stage} if v.vpp else {}
        gpt = GPTModel(
            config,
            spec,
            vocab_size=VOCAB,
            max_sequence_length=v.seq,
            pre_process=ps.is_pipeline_first_stage(ignore_virtual=not v.vpp, **place),
            post_process=ps.is_pipeline_last_stage(ignore_virtual=not v.vpp, **place),
            position_embedding_type="rope",
            **place,
        )
        ddp = DistributedDataParallelConfig(grad_reduce_in_fp32=True, **v.ddp)
        # Gradient accumulation runs on the stream that stood when its hooks were made; a captured
        # backward must not touch the default one.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side if config.cuda_graph_impl == "transformer_engine" else None):
            chunks.append(
                DistributedDataParallel(
                    config, ddp, gpt.cuda().bfloat16(), disable_bucketing=stage > 0
                )
            )
        torch.cuda.current_stream().wait_stream(side)
    return chunks


def trainer(v: Variant) -> Callable[[int], None]:
    """Build model and optimizer; the returned function runs step n."""
    start_parallelism(v)
    config = config_of(v)
    model = build(v, config)
    sharded = bool(v.ddp.get("use_distributed_optimizer"))
    optimizer = get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=1e-5,
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=sharded,
            overlap_param_gather=bool(v.ddp.get("overlap_param_gather")),
        ),
        model,
        use_gloo_process_groups=False,
    )
    config.finalize_model_grads_func = finalize_model_grads
    config.grad_scale_func = optimizer.scale_loss
    no_sync = [chunk.no_sync for chunk in model]
    config.no_sync_func = no_sync if v.vpp else no_sync[0]
    length = v.seq // v.cp
    ids = torch.randint(0, VOCAB, (v.mbs, length), device=DEVICE)
    positions = torch.arange(length, device=DEVICE).unsqueeze(0).expand_as(ids)
    mask = None
    if not v.flash and not v.te:
        mask = torch.ones(1, 1, v.seq, v.seq, dtype=torch.bool, device=DEVICE).triu(1)

    def loss_of(output: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = output.float().mean()
        return loss, {"lm loss": loss.detach()}

    def forward_step(
        _data: Iterator[Any], chunk: Any, return_schedule_plan: bool = False
    ) -> tuple[Any, Callable[..., Any]]:
        if return_schedule_plan:
            plan = mcore_utils.get_attr_wrapped_model(chunk, "build_schedule_plan")
            return plan(ids, positions, mask, labels=ids), loss_of
        return chunk(ids, positions, mask, labels=ids), loss_of

    forward_backward = get_forward_backward_func()
    microbatches.unset_num_microbatches_calculator()
    microbatches.init_num_microbatches_calculator(
        RANK, None, v.mbs * v.nmb * ps.get_data_parallel_world_size(), v.mbs,
        ps.get_data_parallel_world_size(),
    )  # fmt: skip
    graphs = None
    if v.over.get("cuda_graph_impl") == "transformer_engine":
        graphs = TECudaGraphHelper(model, config, v.seq, v.mbs, [optimizer])

    def step(n: int) -> None:
        if graphs is not None and n == WARMUP_STEPS - 1:  # a real step must have run before
            graphs.create_cudagraphs()
            if v.ddp.get("overlap_param_gather"):
                graphs.cuda_graph_set_manual_hooks()
        with named(f"iteration{n}"):
            for chunk in model:
                chunk.zero_grad_buffer()
            optimizer.zero_grad()
            forward_backward(
                forward_step_func=forward_step,
                data_iterator=[iter([]) for _ in model],
                model=model,
                num_microbatches=v.nmb,
                seq_length=v.seq,
                micro_batch_size=v.mbs,
                forward_only=False,
            )
            optimizer.step()

    return step


@contextlib.contextmanager
def named(name: str) -> Iterator[None]:
    """Mark a range in whichever profiler is on."""
    if ARGS.mode == "nsys":
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
    else:
        with torch.profiler.record_function(name):
            yield


def run(name: str) -> None:
    """Time the variant without a profiler, then profile it, and print its RESULT line."""
    v = VARIANTS[name]
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    # Megatron-Core keeps the last variant's model alive and its loss table at the last size.
    kept_bytes = torch.cuda.memory_allocated()
    moe_utils.get_moe_layer_wise_logging_tracker().clear()
    step = trainer(v)
    for n in range(WARMUP_STEPS):
        step(n)
    plain_ms, profiled_ms = [], []
    for n in range(ARGS.steps):
        dist.barrier()
        torch.cuda.synchronize()
        start = time.perf_counter()
        step(100 + n)
        torch.cuda.synchronize()
        plain_ms.append(round(1e3 * (time.perf_counter() - start), 3))

    def timed(n: int) -> None:
        start = time.perf_counter()
        step(n)
        torch.cuda.synchronize()
        profiled_ms.append(round(1e3 * (time.perf_counter() - start), 3))

    dist.barrier()
    torch.cuda.synchronize()
    if ARGS.mode == "torch":
        target = f"{ARGS.out}/{ARGS.prefix}{name}.rank{RANK}.json"
        with torch.profiler.profile(
            schedule=torch.profiler.schedule(wait=0, warmup=1, active=2),
            record_shapes=True,
            on_trace_ready=lambda p: p.export_chrome_trace(target),
        ) as profiler:
            for n in range(3):
                timed(200 + n)
                profiler.step()
    elif ARGS.mode == "nsys":
        torch.cuda.cudart().cudaProfilerStart()
        dist.barrier()
        for n in range(3):
            timed(200 + n)
        dist.barrier()
        torch.cuda.synchronize()
        time.sleep(NSYS_FLUSH_S)
        torch.cuda.cudart().cudaProfilerStop()
    record = {
        "variant": ARGS.prefix + name,
        "rank": RANK,
        "world": WORLD,
        "mode": ARGS.mode,
        "config": {k: str(x) if isinstance(x, dict) else x for k, x in vars(v).items()},
        "step_ms_median": sorted(plain_ms)[len(plain_ms) // 2],
        "step_ms": plain_ms,
        "profiled_step_ms": profiled_ms,
        "peak_alloc_gib": (torch.cuda.max_memory_allocated() - kept_bytes) / 2**30,
        "torch": torch.__version__,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
        "gpu": torch.cuda.get_device_name(),
    }
    print("RESULT " + json.dumps(record), flush=True)


def main() -> None:
    """Run every variant asked for; a failing one is named and, where that is safe, passed over."""
    torch.cuda.set_device(DEVICE)
    dist.init_process_group("nccl", device_id=DEVICE, timeout=timedelta(seconds=60))
    with contextlib.suppress(AttributeError):
        mcore_utils.configure_nvtx_profiling(ARGS.mode == "nsys")
    for name in ARGS.variants.split(","):
        try:
            with torch.cuda.stream(torch.cuda.Stream() if ARGS.side_stream else None):
                run(name)
        except Exception as error:
            print("FAILED", name, RANK, repr(error)[:300], flush=True)
            traceback.print_exc(limit=-6)
            if ARGS.mode == "nsys" or "illegal" in repr(error):
                break
    if any("te_" in name and "graph" in name for name in ARGS.variants.split(",")):
        # NCCL waits forever for communicators that captured graphs still hold. nsys collects its
        # buffers until the process ends: leaving at once took half of a rank's records along.
        time.sleep(NSYS_COLLECT_S if ARGS.mode == "nsys" else 0)
        os._exit(0)
    dist.destroy_process_group()


main()
