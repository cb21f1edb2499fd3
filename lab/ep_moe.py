"""A small expert-parallel MoE trainer in plain PyTorch, to produce real traces.

Every variant trains the same block (flash attention + top-k MoE with expert
parallelism over the world) and differs in one knob. Prints one JSON line per
variant: unprofiled step times, profiled step times, peak memory.
"""

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
import time
from datetime import timedelta

if "thrash" in "".join(sys.argv):  # the allocator reads this when it starts
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:32")

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

P = argparse.ArgumentParser()
P.add_argument("--variants", required=True)
P.add_argument("--mode", choices=["torch", "nsys", "none"], default="none")
P.add_argument("--out", default=".")
P.add_argument("--steps", type=int, default=10)
P.add_argument("--cpu", action="store_true")
P.add_argument("--tiny", action="store_true")
P.add_argument("--prefix", default="")
A = P.parse_args()

# name -> overrides of BASE
BASE = dict(
    layers=4,
    hidden=2048,
    ffn=1024,
    experts=32,
    topk=8,
    seq=4096,
    mbs=2,
    heads=16,
    micro=2,
    grouped=True,
    balanced=False,
    overlap=False,
    recompute="none",
    graph=False,
    skew=0.0,
    memfrac=0.0,
    sync_every=False,
    gc_each=False,
    dispatcher="alltoall",
    emit_nvtx=False,
    memory=False,
    pp_mix=False,
    load_ms=0,
    offload=False,
    active=3,
    die=False,
    vary=False,
    fp8=False,
)
SIX_LAYERS = dict(balanced=True, layers=6, hidden=1536, ffn=2048, experts=16, topk=4, heads=12)
V = {
    "base": dict(),
    "base_mem": dict(memory=True),
    "balanced": dict(balanced=True),
    "overlap": dict(balanced=True, overlap=True),
    "balanced_s2k": dict(balanced=True, seq=2048, layers=3),
    "overlap_s2k": dict(balanced=True, seq=2048, layers=3, overlap=True),
    "balanced_ffn4k": dict(balanced=True, ffn=4096, layers=3),
    "overlap_ffn4k": dict(balanced=True, ffn=4096, layers=3, overlap=True),
    "balanced_k2": dict(balanced=True, topk=2, layers=3),
    "overlap_k2": dict(balanced=True, topk=2, layers=3, overlap=True),
    # sizes that no constant of the what-if was set with
    "balanced_l6": dict(SIX_LAYERS),
    "overlap_l6": dict(SIX_LAYERS, overlap=True),
    "full_l6": dict(SIX_LAYERS, recompute="full"),
    "skew_mild": dict(skew=1.0, layers=3),
    "skew_none": dict(balanced=True, layers=3),
    "seqexp64": dict(grouped=False, experts=64, seq=2048, mbs=1, layers=3, active=2),
    "seqexp64_grouped": dict(experts=64, seq=2048, mbs=1, layers=3, active=2),
    "thrash": dict(
        memfrac=1.25, balanced=True, layers=2, seq=4096, vary=True, memory=True
    ),  # allocator frees and re-allocates every step: little spare memory, blocks not split
    "roomy": dict(
        balanced=True, layers=2, seq=4096, vary=True, memory=True
    ),  # the same with all the memory
    "killed": dict(seq=1024, mbs=1, layers=2, die=True),  # rank 1 dies inside the capture
    "seqexp": dict(
        grouped=False, experts=128, seq=1024, mbs=1, ffn=512, layers=3, active=2
    ),  # one GEMM launch per expert
    "seqexp_grouped": dict(
        grouped=True, experts=128, seq=1024, mbs=1, ffn=512, layers=3, active=2
    ),  # its fix: grouped GEMM
    "small": dict(
        balanced=True, seq=512, mbs=1, layers=8, hidden=1024, ffn=512, heads=8
    ),  # launch bound
    "small_graph": dict(
        balanced=True, seq=512, mbs=1, layers=8, hidden=1024, ffn=512, heads=8, graph=True
    ),
    "bigmem_norc": dict(seq=8192, mbs=2, memory=True),
    "bigmem_full": dict(seq=8192, mbs=2, recompute="full", memory=True),
    "bigmem_sel": dict(seq=8192, mbs=2, recompute="selective", memory=True),
    "skew": dict(skew=2.0),
    "bf16": dict(balanced=True, ffn=2048),
    "fp8": dict(balanced=True, ffn=2048, fp8=True),  # FP8 grouped and plain GEMM, scales per row
    "gcsync": dict(seq=1024, mbs=1, sync_every=True, gc_each=True),
    "deepep": dict(dispatcher="deepep"),
    "ncclep": dict(dispatcher="ncclep"),  # NCCL's own dispatch and combine
    "pp_mix": dict(layers=3, pp_mix=True),  # pipeline-like SendRecv beside expert all-to-all
    "dataload": dict(seq=2048, mbs=1, load_ms=40),  # waits for its data
    "offload": dict(seq=4096, mbs=1, offload=True),  # activations copied to the host and back
    "emitnvtx": dict(seq=1024, mbs=1, layers=2, emit_nvtx=True),
}

rank, world, local = (
    int(os.environ["RANK"]),
    int(os.environ["WORLD_SIZE"]),
    int(os.environ["LOCAL_RANK"]),
)
cuda = not A.cpu
dev = torch.device("cuda", local) if cuda else torch.device("cpu")
if cuda:
    torch.cuda.set_device(dev)
dist.init_process_group(
    "nccl" if cuda else "gloo",
    timeout=timedelta(seconds=60),
    **({"device_id": dev} if cuda else {}),
)
EP = dist.new_group(list(range(world)), group_desc="EXPERT_MODEL_PARALLEL_GROUP")
DP = dist.new_group(list(range(world)), group_desc="DATA_PARALLEL_GROUP_WITH_CP")
PP = dist.new_group(list(range(world)), group_desc="PIPELINE_MODEL_PARALLEL_GROUP")
dt = torch.bfloat16 if cuda else torch.float32


@contextlib.contextmanager
def rng(name):
    if A.mode == "nsys":
        torch.cuda.nvtx.range_push(name)
        try:
            yield
        finally:
            torch.cuda.nvtx.range_pop()
    else:
        with torch.profiler.record_function(name):
            yield


class A2A(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, out_splits, in_splits):
        ctx.s = (out_splits, in_splits)
        n = sum(out_splits) if out_splits else x.shape[0]
        out = x.new_empty((n,) + x.shape[1:])
        dist.all_to_all_single(out, x.contiguous(), out_splits, in_splits, group=EP)
        return out

    @staticmethod
    def backward(ctx, g):
        o, i = ctx.s
        n = sum(i) if i else g.shape[0]
        out = g.new_empty((n,) + g.shape[1:])
        dist.all_to_all_single(out, g.contiguous(), i, o, group=EP)
        return out, None, None


FP8_MAX = 448.0  # of e4m3


def rows_to_fp8(x):
    """FP8 values and the scale of each row (last dimension)."""
    scale = x.abs().amax(-1, keepdim=True).float().clamp(min=1e-12) / FP8_MAX
    return (x.float() / scale).to(torch.float8_e4m3fn), scale.squeeze(-1)


class FP8Linear(torch.autograd.Function):
    """y = x @ w.T, forward and input gradient in FP8, weight gradient in bf16."""

    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        (a, sa), (b, sb) = rows_to_fp8(x), rows_to_fp8(w)
        return torch._scaled_mm(a, b.t(), sa[:, None], sb[None], out_dtype=x.dtype)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        (a, sa), (b, sb) = rows_to_fp8(g.contiguous()), rows_to_fp8(w.t().contiguous())
        return torch._scaled_mm(a, b.t(), sa[:, None], sb[None], out_dtype=x.dtype), g.t() @ x


class FP8Grouped(torch.autograd.Function):
    """Grouped x @ w, with the rows of each group a multiple of 16; gradients as in FP8Linear."""

    @staticmethod
    def forward(ctx, x, w, offs):
        ctx.save_for_backward(x, w, offs)
        (a, sa), (b, sb) = rows_to_fp8(x), rows_to_fp8(w.transpose(1, 2).contiguous())
        return torch._scaled_grouped_mm(
            a, b.transpose(1, 2), sa, sb, offs=offs, out_dtype=x.dtype, use_fast_accum=True
        )

    @staticmethod
    def backward(ctx, g):
        x, w, offs = ctx.saved_tensors
        g = g.contiguous()
        (a, sa), (b, sb) = rows_to_fp8(g), rows_to_fp8(w)
        dx = torch._scaled_grouped_mm(
            a, b.transpose(1, 2), sa, sb, offs=offs, out_dtype=x.dtype, use_fast_accum=True
        )
        return dx, torch._grouped_mm(x.t(), g, offs=offs), None


comm_stream = torch.cuda.Stream() if cuda else None
_deepep = _ncclep = None


class Attn(nn.Module):
    def __init__(s, c):
        super().__init__()
        h = c["hidden"]
        s.h, s.fp8 = c["heads"], c["fp8"]
        s.norm = nn.RMSNorm(h, dtype=dt, device=dev)
        s.qkv = nn.Linear(h, 3 * h, bias=False, dtype=dt, device=dev)
        s.o = nn.Linear(h, h, bias=False, dtype=dt, device=dev)

    def forward(s, x):
        b, t, h = x.shape
        q, k, v = s.lin(s.qkv, s.norm(x)).view(b, t, 3, s.h, h // s.h).permute(2, 0, 3, 1, 4)
        o = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + s.lin(s.o, o.transpose(1, 2).reshape(b, t, h))

    def lin(s, m, x):
        if not s.fp8:
            return m(x)
        return FP8Linear.apply(x.reshape(-1, x.shape[-1]), m.weight).view(*x.shape[:-1], -1)


class MoE(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c = c
        h, f = c["hidden"], c["ffn"]
        s.E = c["experts"]
        s.L = s.E // world
        s.k = c["topk"]
        s.norm = nn.RMSNorm(h, dtype=dt, device=dev)
        s.gate = nn.Linear(h, s.E, bias=False, dtype=torch.float32, device=dev)
        s.w1 = nn.Parameter(torch.randn(s.L, h, 2 * f, dtype=dt, device=dev) * 0.02)
        s.w2 = nn.Parameter(torch.randn(s.L, f, h, dtype=dt, device=dev) * 0.02)
        for p in (s.w1, s.w2):
            p.expert = True

    def route(s, x):
        with rng("moe.router"):
            logits = s.gate(x.float())
            if s.c["balanced"]:
                n = x.shape[0]
                base = torch.arange(n * s.k, device=x.device).view(n, s.k) % s.E
                probs = torch.softmax(logits, -1).gather(1, base)
                return probs, base
            if s.c["skew"]:
                logits = logits + s.c["skew"] * torch.linspace(-1, 1, s.E, device=x.device)
            p, i = torch.softmax(logits, -1).topk(s.k, -1)
            return p / p.sum(-1, keepdim=True), i

    def experts(s, x, counts):
        with rng("moe.experts"):
            if s.c["grouped"] and cuda:
                offs = torch.cumsum(counts, 0).to(torch.int32)
                if s.c["fp8"]:
                    a, b = FP8Grouped.apply(x, s.w1, offs).chunk(2, -1)
                    return FP8Grouped.apply(F.silu(a) * b, s.w2, offs)
                h = torch._grouped_mm(x, s.w1, offs=offs)
                a, b = h.chunk(2, -1)
                return torch._grouped_mm((F.silu(a) * b), s.w2, offs=offs)
            outs = []
            for j, xs in enumerate(x.split(counts.tolist())):
                a, b = (xs @ s.w1[j]).chunk(2, -1)
                outs.append((F.silu(a) * b) @ s.w2[j])
            return torch.cat(outs)

    def moe_chunk(s, x, p, i):
        return s.finish(s.start(x, p, i))

    def start(s, x, p, i):
        with rng("moe.permute"):
            flat = i.reshape(-1)
            order = torch.argsort(flat, stable=True)
            tok = order // s.k
            counts = torch.bincount(flat, minlength=s.E)
            xs = x[tok]
        if s.c["balanced"]:
            insp = outsp = None
            rcounts = counts
            if True:
                rc = torch.empty_like(counts)
                dist.all_to_all_single(rc, counts, group=EP)
                rcounts = rc
        else:
            with rng("moe.sync_splits"):
                rcounts = torch.empty_like(counts)
                dist.all_to_all_single(rcounts, counts, group=EP)
                insp = counts.view(world, -1).sum(1).tolist()
                outsp = rcounts.view(world, -1).sum(1).tolist()
        if s.c["overlap"]:
            comm_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(comm_stream), rng("moe.dispatch"):
                d = A2A.apply(xs, outsp, insp)
        else:
            with rng("moe.dispatch"):
                d = A2A.apply(xs, outsp, insp)
        return d, rcounts, insp, outsp, order, tok, p, x.shape

    def finish(s, st):
        d, rcounts, insp, outsp, order, tok, p, shape = st
        if s.c["overlap"]:
            torch.cuda.current_stream().wait_stream(comm_stream)
        with rng("moe.sort"):
            eid = (
                torch.arange(s.L, device=d.device)
                .repeat(world)
                .repeat_interleave(rcounts, output_size=d.shape[0])
            )
            o2 = torch.argsort(eid, stable=True)
            xs = d[o2]
        y = s.experts(xs, rcounts.view(world, s.L).sum(0))
        with rng("moe.unsort"):
            inv = torch.empty_like(o2)
            inv[o2] = torch.arange(o2.numel(), device=o2.device)
            y = y[inv]
        if s.c["overlap"]:
            comm_stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(comm_stream), rng("moe.combine"):
                y = A2A.apply(y, insp, outsp)
        else:
            with rng("moe.combine"):
                y = A2A.apply(y, insp, outsp)
        return y, order, tok, p, shape

    def unpermute(s, r):
        y, order, tok, p, shape = r
        if s.c["overlap"]:
            torch.cuda.current_stream().wait_stream(comm_stream)
        with rng("moe.unpermute"):
            out = torch.zeros(shape, dtype=y.dtype, device=y.device)
            return out.index_add(0, tok, y * p.reshape(-1)[order].unsqueeze(1).to(y.dtype))

    def deepep(s, x, p, i):
        global _ncclep
        if s.c["dispatcher"] == "ncclep":
            if _ncclep is None:
                _ncclep = NcclEP(s.E, s.k, *x.shape)
            return DeepEPMoE.apply_moe(s, _ncclep, x, p, i)
        buf = deepep_buffer(x.shape[1])
        return DeepEPMoE.apply_moe(s, buf, x, p, i)

    def forward(s, x):
        b, t, h = x.shape
        z = s.norm(x).view(-1, h)
        p, i = s.route(z)
        if s.c["dispatcher"] != "alltoall":
            out = s.deepep(z, p, i)
        elif s.c["overlap"]:
            half = z.shape[0] // 2
            a = s.start(z[:half], p[:half], i[:half])
            c = s.start(z[half:], p[half:], i[half:])
            ra = s.finish(a)
            rc = s.finish(c)
            out = torch.cat([s.unpermute(ra), s.unpermute(rc)])
        else:
            out = s.unpermute(s.moe_chunk(z, p, i))
        return x + out.view(b, t, h)


class EPDispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, i, buf, E):
        npr, npn, npe, inr, prev = buf.get_dispatch_layout(i, E)
        rx, ri, rp, nlist, handle, ev = buf.dispatch(
            x,
            topk_idx=i,
            topk_weights=p,
            num_tokens_per_rank=npr,
            num_tokens_per_rdma_rank=npn,
            is_token_in_rank=inr,
            num_tokens_per_expert=npe,
        )
        ctx.buf, ctx.handle = buf, handle
        ctx.mark_non_differentiable(ri)
        EPDispatch.last = (handle, nlist)
        return rx, ri, rp

    @staticmethod
    def backward(ctx, gx, _, gp):
        g, gw, ev = ctx.buf.combine(
            gx.contiguous(), ctx.handle, topk_weights=gp.float().contiguous()
        )
        return g, gw, None, None, None


class EPCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, buf, handle):
        ctx.buf, ctx.handle = buf, handle
        y, _, _ = buf.combine(x.contiguous(), handle)
        return y

    @staticmethod
    def backward(ctx, g):
        gx, *_ = ctx.buf.dispatch(g.contiguous(), handle=ctx.handle)
        return gx, None, None


def deepep_buffer(hidden):
    global _deepep
    if _deepep is None:
        import deep_ep

        n = max(
            deep_ep.Buffer.get_dispatch_config(world).get_nvl_buffer_size_hint(hidden * 2, world),
            deep_ep.Buffer.get_combine_config(world).get_nvl_buffer_size_hint(hidden * 2, world),
        )
        _deepep = deep_ep.Buffer(EP, n, 0)
    return _deepep


class NcclEP:
    """NCCL's expert-parallel library (nccl-extensions, NCCL 2.30): one group, reused handles."""

    def __init__(s, experts, k, tokens, hidden):
        from nccl import ep
        from nccl.ep.interop.torch import get_nccl_comm_from_group

        s.ep, s.free = ep, []
        s.comm = get_nccl_comm_from_group(EP)
        s.group = ep.Group.create(
            s.comm,
            ep.GroupConfig(
                algorithm=ep.Algorithm.HIGH_THROUGHPUT,
                num_experts=experts,
                max_dispatch_tokens_per_rank=tokens,
                max_token_bytes=2 * hidden,
                num_topk=k,
            ),
        )

    def handle(s, i):
        """A handle for the routing [tokens, k], and how many rows this rank receives."""
        total = torch.zeros(1, dtype=torch.int32, device=dev)
        idx, t = s.ep.Tensor(i), s.ep.Tensor(total)
        info = s.ep.LayoutInfo(recv_total_counter=t)
        if s.free:
            h = s.free.pop()
            h.update(idx, layout_info=info, stream=stream())
        else:
            h = s.group.create_handle(s.ep.Layout.FLAT, idx, layout_info=info, stream=stream())
        h.kept = (i, idx, t, info)
        return h, int(total)

    def dispatch(s, h, n, x, p=None):
        """Rows [n, hidden]; with weights [tokens, k] also their weights and experts [n, k]."""
        t, ep = s.ep.Tensor, s.ep
        rx = x.new_empty(n, x.shape[1])
        if p is None:
            cfg = ep.DispatchConfig(pass_direction=ep.PassDir.BWD)
            h.dispatch(
                ep.DispatchInputs(tokens=t(x)),
                ep.DispatchOutputs(tokens=t(rx)),
                config=cfg,
                stream=stream(),
            )
            return rx
        rp = p.new_empty(n, p.shape[1])
        ri = torch.empty(n, p.shape[1], dtype=torch.int64, device=dev)
        h.dispatch(
            ep.DispatchInputs(tokens=t(x), topk_weights=t(p)),
            ep.DispatchOutputs(tokens=t(rx), topk_weights=t(rp), topk_idx=t(ri)),
            stream=stream(),
        )
        return rx, ri, rp

    def combine(s, h, tokens, x, p=None):
        """Sums [tokens, hidden] of the rows; with weights [n, k] (backward) theirs too."""
        t, ep = s.ep.Tensor, s.ep
        out = x.new_empty(tokens, x.shape[1])
        if p is None:
            h.combine(
                ep.CombineInputs(tokens=t(x)), ep.CombineOutputs(tokens=t(out)), stream=stream()
            )
            return out
        gw = p.new_empty(tokens, p.shape[1])
        h.combine(
            ep.CombineInputs(tokens=t(x), topk_weights=t(p)),
            ep.CombineOutputs(tokens=t(out), topk_weights=t(gw)),
            config=ep.CombineConfig(pass_direction=ep.PassDir.BWD),
            stream=stream(),
        )
        return out, gw


def stream():
    return torch.cuda.current_stream().cuda_stream


class NcclDispatch(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, p, i, lib):
        h, n = lib.handle(i)
        ctx.lib, ctx.h, ctx.tokens = lib, h, x.shape[0]
        NcclDispatch.last = (h, n, x.shape[0])
        rx, ri, rp = lib.dispatch(h, n, x.contiguous(), p.contiguous())
        ctx.mark_non_differentiable(ri)
        return rx, ri, rp

    @staticmethod
    def backward(ctx, gx, _, gp):
        g, gw = ctx.lib.combine(ctx.h, ctx.tokens, gx.contiguous(), gp.float().contiguous())
        ctx.lib.free.append(ctx.h)
        return g, gw, None, None


class NcclCombine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, lib, last):
        ctx.lib, ctx.last = lib, last
        return lib.combine(last[0], last[2], x.contiguous())

    @staticmethod
    def backward(ctx, g):
        return ctx.lib.dispatch(ctx.last[0], ctx.last[1], g.contiguous()), None, None


class DeepEPMoE:
    @staticmethod
    def apply_moe(s, buf, x, p, i):
        nccl = isinstance(buf, NcclEP)
        with rng("moe.dispatch"):
            if nccl:
                rx, ri, rp = NcclDispatch.apply(x, p.float(), i, buf)
                last = NcclDispatch.last
            else:
                rx, ri, rp = EPDispatch.apply(x, p.float(), i, buf, s.E)
                handle, _ = EPDispatch.last
        with rng("moe.permute"):
            m = ri >= 0
            tok, slot = m.nonzero(as_tuple=True)
            e = ri[tok, slot]
            o = torch.argsort(e, stable=True)
            tok, slot = tok[o], slot[o]
            xs = rx[tok]
            counts = torch.bincount(e, minlength=s.L)
        y = s.experts(xs, counts)
        with rng("moe.unpermute"):
            acc = torch.zeros_like(rx).index_add(0, tok, y * rp[tok, slot].unsqueeze(1).to(y.dtype))
        with rng("moe.combine"):
            if nccl:
                return NcclCombine.apply(acc, buf, last)
            return EPCombine.apply(acc, buf, handle)


class Model(nn.Module):
    def __init__(s, c):
        super().__init__()
        s.c = c
        s.emb = nn.Embedding(32000, c["hidden"], dtype=dt, device=dev)
        s.attn = nn.ModuleList([Attn(c) for _ in range(c["layers"])])
        s.moe = nn.ModuleList([MoE(c) for _ in range(c["layers"])])
        s.head = nn.Linear(c["hidden"], 32000, bias=False, dtype=dt, device=dev)
        s.graphed = None
        s.host, s.back = {}, {}
        s.side = torch.cuda.Stream() if cuda else None

    def forward(s, ids, lab):
        x = s.emb(ids)
        for n, (a, m) in enumerate(zip(s.attn, s.moe)):
            at = s.graphed[n] if s.graphed else a
            if s.c["recompute"] == "full":
                x = checkpoint(lambda x, a=a, m=m: m(a(x)), x, use_reentrant=False)
            elif s.c["recompute"] == "selective":
                x = m(checkpoint(a, x, use_reentrant=False))
            else:
                with rng(f"layer{n}.attention"):
                    x = at(x)
                with rng(f"layer{n}.moe"):
                    x = m(x)
            if s.c["pp_mix"]:
                with rng("p2p"):
                    other = torch.empty_like(x)
                    peer = (rank + 1) % world
                    for r in dist.batch_isend_irecv(
                        [
                            dist.P2POp(dist.isend, x.detach().contiguous(), peer, PP),
                            dist.P2POp(dist.irecv, other, peer, PP),
                        ]
                    ):
                        r.wait()
                    x = x + 1e-6 * other
            if s.c["offload"] and cuda:
                with rng("offload"):
                    side = s.side
                    side.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(side):
                        h = s.host.setdefault(
                            n, torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
                        )
                        h.copy_(x.detach(), non_blocking=True)
                        s.back[n] = h.to(dev, non_blocking=True)
        with rng("loss"):
            return F.cross_entropy(s.head(x).view(-1, 32000).float(), lab.view(-1))


def run(name):
    c = dict(BASE, **V[name])
    if A.tiny:
        c.update(layers=2, hidden=64, ffn=32, experts=8, topk=2, seq=32, mbs=1, heads=4)
    torch.manual_seed(0)
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    model = Model(c)
    params = list(model.parameters())
    opt = torch.optim.Adam(params, lr=1e-5, fused=cuda)
    ids = torch.randint(0, 32000, (c["mbs"], c["seq"]), device=dev)
    lab = torch.randint(0, 32000, (c["mbs"], c["seq"]), device=dev)
    if c["graph"] and cuda:
        x = torch.randn(c["mbs"], c["seq"], c["hidden"], dtype=dt, device=dev, requires_grad=True)
        model.graphed = torch.cuda.make_graphed_callables(
            tuple(model.attn), tuple((x,) for _ in model.attn)
        )
    dense = [p for p in params if not hasattr(p, "expert")]

    def step(n):
        with rng(f"iteration{n}"):
            for m in range(c["micro"]):
                if c["load_ms"]:
                    with rng("data_loading"):
                        time.sleep(c["load_ms"] / 1e3)
                cut = c["seq"] - 128 * ((7 * n + 3 * m) % 8) if c["vary"] else c["seq"]
                with rng("forward"):
                    loss = model(ids[:, :cut], lab[:, :cut].contiguous())
                with rng("backward"):
                    loss.backward()
                if c["sync_every"] and cuda:
                    loss.item()
            with rng("grad_reduce"):
                flat = torch.cat([p.grad.reshape(-1).float() for p in dense])
                dist.all_reduce(flat, group=DP)
                o = 0
                for p in dense:
                    p.grad.copy_(flat[o : o + p.numel()].view_as(p) / world)
                    o += p.numel()
            with rng("optimizer"):
                opt.step()
                opt.zero_grad(set_to_none=True)
            if c["gc_each"]:
                gc.collect()

    def sync():
        if cuda:
            torch.cuda.synchronize()

    for n in range(4):
        step(n)
    if c["memfrac"] and cuda:
        # Little spare memory and large blocks that are never split: micro-batches of changing
        # length make the allocator free its blocks and ask the driver for new ones.
        total = torch.cuda.get_device_properties(dev).total_memory
        peak = torch.cuda.max_memory_allocated()
        for fraction in (c["memfrac"], c["memfrac"] + 0.25, c["memfrac"] + 0.75):
            torch.cuda.empty_cache()
            torch.cuda.set_per_process_memory_fraction(min(1.0, fraction * peak / total))
            fits = torch.ones(1, device=dev)
            try:
                for n in range(8):
                    step(n)
            except torch.OutOfMemoryError:
                fits.zero_()
                opt.zero_grad(set_to_none=True)
            dist.all_reduce(fits, op=dist.ReduceOp.MIN)
            if fits.item():
                break
    times = []
    for n in range(A.steps):
        dist.barrier()
        sync()
        t = time.perf_counter()
        step(100 + n)
        sync()
        times.append(time.perf_counter() - t)
    ptimes = []

    def timed(n):
        t = time.perf_counter()
        step(n)
        sync()
        ptimes.append(time.perf_counter() - t)

    def export(p):
        target = f"{A.out}/{A.prefix}{name}.rank{rank}.json"
        if c["die"] and rank == 1:
            # Kineto names its file when it is whole; PyTorch packs the finished one bit by bit.
            target += ".gz"
            time.sleep(4)  # the other rank writes its trace whole
            if os.fork() == 0:
                while not os.path.exists(target) or os.path.getsize(target) < 2**17:
                    time.sleep(1e-4)
                os.kill(os.getppid(), signal.SIGKILL)
                os._exit(0)
        p.export_chrome_trace(target)

    dist.barrier()
    sync()
    if A.mode == "torch":
        acts = [torch.profiler.ProfilerActivity.CPU] + (
            [torch.profiler.ProfilerActivity.CUDA] if cuda else []
        )
        with torch.profiler.profile(
            activities=acts,
            schedule=torch.profiler.schedule(wait=0, warmup=2, active=c["active"]),
            record_shapes=True,
            profile_memory=c["memory"],
            with_stack=False,
            on_trace_ready=export,
        ) as prof:
            for n in range(2 + c["active"]):
                timed(200 + n)
                prof.step()
    elif A.mode == "nsys":
        torch.cuda.cudart().cudaProfilerStart()
        dist.barrier()
        cm = (
            torch.autograd.profiler.emit_nvtx(record_shapes=True)
            if c["emit_nvtx"]
            else contextlib.nullcontext()
        )
        with cm:
            for n in range(3):
                if c["die"] and n == 2 and rank == 1:
                    os.kill(os.getpid(), signal.SIGKILL)
                timed(200 + n)
        dist.barrier()
        sync()
        time.sleep(2.5)
        torch.cuda.cudart().cudaProfilerStop()
    times.sort()
    rec = dict(
        variant=A.prefix + name,
        rank=rank,
        mode=A.mode,
        config=c,
        step_ms_median=1e3 * times[len(times) // 2],
        step_ms=[round(1e3 * t, 3) for t in times],
        profiled_step_ms=[round(1e3 * t, 3) for t in ptimes],
    )
    if cuda:
        rec.update(
            peak_alloc_gb=torch.cuda.max_memory_allocated() / 2**30,
            peak_reserved_gb=torch.cuda.max_memory_reserved() / 2**30,
            torch=torch.__version__,
            nccl=".".join(map(str, torch.cuda.nccl.version())),
            gpu=torch.cuda.get_device_name(dev),
            alloc_retries=torch.cuda.memory_stats()["num_alloc_retries"],
        )
    print("RESULT " + json.dumps(rec), flush=True)
    if c["memfrac"] and cuda:
        torch.cuda.set_per_process_memory_fraction(1.0)


for v in A.variants.split(","):
    try:
        run(v)
    except Exception as e:
        import traceback

        print("FAILED", v, rank, repr(e)[:300], flush=True)
        traceback.print_exc()
        if A.mode != "torch":
            break
dist.barrier()
dist.destroy_process_group()
