"""The exact, minimal profiling command for a framework, with the reason for each part.

The options follow Megatron-LM's and Megatron-Bridge's ProfilingConfig, NeMo-Run's NsysPlugin and
the documentation of nsys and torch.profiler.
"""

from dataclasses import dataclass

from moe_advisor.errors import ConfigError

MB_PER_STEP_RANK = {"nsys": 2.0, "torch": 12.0}
"""Megabytes a rank and step before compression (nsys' SQLite export, Kineto JSON), rounded up from
captures of 4 to 8 layers with 1,400 to 4,500 kernels per step: 0.5 to 1.1 and 5 to 12."""

WARM_STEPS = 10
"""Steps before the capture: compilation, autotuning and the allocator settle in fewer."""

MAX_STEPS = 50


@dataclass(frozen=True, slots=True)
class Wish:
    """What to capture: `steps` whole steps from step `start` on, of one EP group's `ranks`."""

    framework: str
    profiler: str
    start: int = WARM_STEPS
    steps: int = 3
    ranks: tuple[int, ...] = (0,)
    world_size: int | None = None
    launcher: str = "torchrun"


@dataclass(frozen=True, slots=True)
class Advice:
    """The command and configuration with their reasons, and what the capture will lack."""

    title: str
    blocks: tuple[tuple[str, str], ...]
    reasons: tuple[tuple[str, str], ...]
    lacks: tuple[str, ...]
    then: str


FRAMEWORKS = ("megatron-bridge", "megatron-lm", "torch", "nemo-run")
LAUNCHERS = ("torchrun", "srun")

_NSYS = (
    "{before}nsys profile --trace=cuda,nvtx --sample=none --cpuctxsw=none \\\n"
    "  --capture-range=cudaProfilerApi --capture-range-end=stop \\\n"
    "  --cuda-graph-trace=node --cuda-memory-usage=true --force-overwrite=true \\\n"
    "  --output={output} \\\n"
    "  {command}"
)

_NSYS_REASONS = (
    ("--trace=cuda,nvtx", "kernels, copies, launches, and the ranges that name steps and NCCL"),
    ("--sample=none --cpuctxsw=none", "CPU samples are not used and slow the host down"),
    (
        "--capture-range=cudaProfilerApi, -end=stop",
        "records only between the profiler calls that the framework makes at the chosen steps",
    ),
    (
        "--cuda-graph-trace=node",
        "shows the kernels inside CUDA graphs; without it a graph is one opaque block. It costs "
        "time per graph kernel: leave it out where no graphs are used",
    ),
    ("--cuda-memory-usage=true", "peak memory and headroom; leave it out if the host is the limit"),
)


def group_ranks(ep: int, pp: int, world_size: int | None) -> tuple[int, ...]:
    """The ranks that tell most: the first expert-parallel group, and one rank of every other stage.

    In Megatron's order of ranks the experts of one group lie side by side and stages far apart.
    `world_size` is needed for more than one stage. Raises ConfigError where they don't fit.
    """
    if pp == 1:
        if world_size is not None and world_size % ep:
            raise ConfigError(f"--ep {ep} does not divide --world-size {world_size}")
        return tuple(range(ep))
    if world_size is None:
        raise ConfigError("--pp: give --world-size too: it says where the stages begin")
    if world_size % (ep * pp):
        raise ConfigError(f"--ep {ep} times --pp {pp} does not divide --world-size {world_size}")
    return (*range(ep), *(stage * (world_size // pp) for stage in range(1, pp)))


def _started(wish: Wish, script: str) -> str:
    """The command with nsys where the launcher wants it: one report a node, or one a rank."""
    if wish.launcher == "srun":
        return _NSYS.format(
            before="srun <your arguments> ",
            output="moe_%q{SLURM_JOB_ID}_rank%q{SLURM_PROCID}",
            command=f"python {script}",
        )
    return _NSYS.format(
        before="", output="moe_%h_%p", command=f"torchrun <your arguments> {script}"
    )


def _where(wish: Wish) -> str:
    return "Command in the job script" if wish.launcher == "srun" else "Command on every node"


def _launcher_reasons(wish: Wish) -> tuple[tuple[str, str], ...]:
    if wish.launcher == "srun":
        return (
            (
                "srun ... nsys",
                "every task has its own nsys; tasks that never start it write nothing",
            ),
        )
    return (
        ("nsys ... torchrun", "one report a node holds all its ranks; give those of all nodes"),
    )


def advice(wish: Wish) -> Advice:
    """The capture for a wish; `profiler` is nsys or torch."""
    build = {
        ("megatron-lm", "nsys"): _megatron_lm_nsys,
        ("megatron-lm", "torch"): _megatron_lm_torch,
        ("megatron-bridge", "nsys"): _bridge_nsys,
        ("megatron-bridge", "torch"): _bridge_torch,
        ("nemo-run", "nsys"): _nemo_run,
        ("nemo-run", "torch"): _bridge_torch,
        ("torch", "nsys"): _torch_nsys,
        ("torch", "torch"): _torch_torch,
    }[wish.framework, wish.profiler]
    return build(wish)


def size_mb(wish: Wish) -> float:
    """Expected size in MB of all the ranks' captures, before compression."""
    # Under nsys the frameworks write no step ranges: one step more is asked for.
    edge = wish.profiler == "nsys" and wish.framework != "torch"
    return MB_PER_STEP_RANK[wish.profiler] * (wish.steps + edge) * len(wish.ranks)


def _end(wish: Wish) -> int:
    return wish.start + wish.steps


def _ranks(wish: Wish, separator: str = " ") -> str:
    return separator.join(map(str, wish.ranks))


def _missing_ranks(wish: Wish) -> tuple[str, ...]:
    if wish.world_size and len(wish.ranks) == wish.world_size:
        return ()
    return (
        "Ranks outside this list: waiting and transfer of a group are told apart only where all "
        "its ranks are captured, else they are bounded. Choose all ranks of one EP group.",
    )


_NO_LOG = (
    "The unprofiled step time: keep the training log and give it with --log, since a profiler "
    "stretches host-bound steps by 20 to 50 %."
)
_NO_STEP_RANGES = (
    "Step ranges: the framework writes none for nsys; steps are found by the optimizer, and what "
    "lies before the first optimizer of the capture is dropped. One more step makes up for it."
)


def _megatron_lm_nsys(wish: Wish) -> Advice:
    flags = (
        f"--profile --profile-step-start {wish.start} --profile-step-end {_end(wish) + 1} "
        f"--profile-ranks {_ranks(wish)} --nvtx-ranges"
    )
    return Advice(
        "Megatron-LM with Nsight Systems",
        (
            (
                _where(wish),
                _started(wish, "pretrain_gpt.py <your arguments> \\\n  " + flags),
            ),
        ),
        (
            *_launcher_reasons(wish),
            *_NSYS_REASONS,
            ("--profile", "calls the profiler at the steps; it is the master switch"),
            (
                f"--profile-step-start {wish.start} --profile-step-end {_end(wish) + 1}",
                f"{wish.steps} whole steps after warm-up, and one for the edges; the end step is "
                "not recorded",
            ),
            (
                f"--profile-ranks {_ranks(wish)}",
                "without it newer releases record every rank, older ones rank 0 only",
            ),
            ("--nvtx-ranges", "names attention, MLP and pipeline phases"),
        ),
        (
            _NO_STEP_RANGES,
            "Operator ranges: --record-shapes adds them, and host time with them.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze moe_*.nsys-rep --log train.log",
    )


def _megatron_lm_torch(wish: Wish) -> Advice:
    flags = (
        "--profile --use-pytorch-profiler --tensorboard-dir <dir>/tensorboard \\\n"
        f"  --profile-step-start {wish.start} --profile-step-end {_end(wish)} "
        f"--profile-ranks {_ranks(wish)}"
    )
    return Advice(
        "Megatron-LM with the PyTorch profiler",
        (("Arguments to add", flags),),
        (
            ("--profile --use-pytorch-profiler", "both are needed: the first is the master switch"),
            ("--tensorboard-dir", "traces go to its neighbour: torch_profile/rank-<R>.json.gz"),
            (
                f"--profile-step-start {wish.start} --profile-step-end {_end(wish)}",
                f"{wish.steps} steps after warm-up, marked ProfilerStep#N",
            ),
            (f"--profile-ranks {_ranks(wish)}", "without it newer releases record every rank"),
        ),
        (
            "Shapes and stacks: off on purpose, they stretch the host most.",
            "Memory: the trace holds no memory events; the log's peak is used.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze '<dir>/torch_profile/rank-*.json.gz' --log train.log",
    )


def _bridge_nsys(wish: Wish) -> Advice:
    config = "\n".join(
        (
            "cfg.profiling.use_nsys_profiler = True",
            f"cfg.profiling.profile_step_start = {wish.start}",
            f"cfg.profiling.profile_step_end = {_end(wish) + 1}",
            f"cfg.profiling.profile_ranks = [{_ranks(wish, ', ')}]",
            "cfg.profiling.nvtx_ranges = True",
        )
    )
    return Advice(
        "Megatron-Bridge with Nsight Systems",
        (
            ("Configuration", config),
            (
                _where(wish),
                _started(wish, "<your recipe script>"),
            ),
        ),
        (
            *_launcher_reasons(wish),
            *_NSYS_REASONS,
            ("use_nsys_profiler", "calls the profiler at the steps; excludes the PyTorch profiler"),
            (
                "profile_step_start, profile_step_end",
                f"{wish.steps} whole steps after warm-up, and one for the edges; the end step is "
                "not recorded",
            ),
            ("profile_ranks", "rank 0 by default, and [] means all"),
            ("nvtx_ranges", "names attention, MLP and pipeline phases"),
        ),
        (
            _NO_STEP_RANGES,
            "Undisturbed host time: Bridge always emits a range per operator in the nsys window, "
            "so host gaps look larger than they are. Compare with the log.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze moe_*.nsys-rep --config run_config.yaml --log train.log",
    )


def _bridge_torch(wish: Wish) -> Advice:
    config = "\n".join(
        (
            "cfg.profiling.use_pytorch_profiler = True",
            f"cfg.profiling.profile_step_start = {wish.start}",
            f"cfg.profiling.profile_step_end = {_end(wish)}",
            f"cfg.profiling.profile_ranks = [{_ranks(wish, ', ')}]",
        )
    )
    return Advice(
        "Megatron-Bridge with the PyTorch profiler",
        (("Configuration", config),),
        (
            ("use_pytorch_profiler", "writes torch_profile/rank-<R>.json.gz beside TensorBoard"),
            ("profile_step_start, profile_step_end", f"{wish.steps} steps, ProfilerStep#N each"),
            ("profile_ranks", "rank 0 by default, and [] means all"),
        ),
        (
            "Shapes and stacks: off on purpose, they stretch the host most.",
            "Memory: the trace holds no memory events; the log's peak is used.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze 'torch_profile/rank-*.json.gz' --config run_config.yaml",
    )


def _nemo_run(wish: Wish) -> Advice:
    code = "\n".join(
        (
            "from megatron.bridge.recipes.run_plugins import NsysPlugin",
            "",
            "plugin = NsysPlugin(",
            f"    profile_step_start={wish.start},",
            f"    profile_step_end={_end(wish) + 1},",
            f"    profile_ranks=[{_ranks(wish, ', ')}],",
            ")",
            "run.run(task, executor=executor, plugins=[plugin])",
        )
    )
    return Advice(
        "NeMo-Run with Nsight Systems",
        (("Plugin", code),),
        (
            (
                "NsysPlugin",
                "adds nsys with nvtx,cuda and --cuda-graph-trace=node, and the settings",
            ),
            ("profile_step_end", "one more than asked for: steps are cut by the capture's edges"),
            ("profile_ranks", "all ranks of one EP group tell waiting from transfer"),
        ),
        (
            _NO_STEP_RANGES,
            "Memory: the plugin does not ask for --cuda-memory-usage=true; add it to its extra "
            "arguments or give the log.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze 'profile_*_rank*.nsys-rep' --log train.log",
    )


def _torch_nsys(wish: Wish) -> Advice:
    code = "\n".join(
        (
            f"RANKS, FIRST, LAST = {{{_ranks(wish, ', ')}}}, {wish.start}, {_end(wish)}",
            "for step, batch in enumerate(loader):",
            "    if rank in RANKS and step == FIRST:",
            "        torch.cuda.synchronize(); torch.cuda.profiler.start()",
            "    if rank in RANKS and step == LAST:",
            "        torch.cuda.synchronize(); torch.cuda.profiler.stop()",
            '    with torch.cuda.nvtx.range(f"iteration{step}"):',
            "        train_step(batch)",
        )
    )
    return Advice(
        "PyTorch with Nsight Systems",
        (
            ("Training loop", code),
            (
                _where(wish),
                _started(wish, "train.py"),
            ),
        ),
        (
            *_launcher_reasons(wish),
            *_NSYS_REASONS,
            ('range(f"iteration{step}")', "names the steps; range names of modules help too"),
        ),
        (
            "Operator ranges: wrap experts, router and dispatch in nvtx ranges where you can; "
            "without them roles come from kernel names and structure.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze moe_*.nsys-rep",
    )


def _torch_torch(wish: Wish) -> Advice:
    wait = max(wish.start - 1, 0)
    code = "\n".join(
        (
            "from torch.profiler import ProfilerActivity, profile, schedule",
            "",
            f"RANKS = {{{_ranks(wish, ', ')}}}",
            "def save(p):",
            '    p.export_chrome_trace(f"moe.rank{rank}.json.gz")',
            "",
            "prof = profile(",
            "    activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA],",
            f"    schedule=schedule(wait={wait}, warmup=1, active={wish.steps}, repeat=1),",
            "    on_trace_ready=save,",
            ") if rank in RANKS else contextlib.nullcontext()",
            "with prof:",
            "    for batch in loader:",
            "        train_step(batch)",
            "        if rank in RANKS: prof.step()",
        )
    )
    return Advice(
        "PyTorch with its profiler",
        (("Training loop", code),),
        (
            ("activities", "CPU for launches and operators, CUDA for kernels"),
            (f"wait={wait}, warmup=1", "training settles, then one step that is thrown away"),
            (
                f"active={wish.steps}, repeat=1",
                "one short capture; prof.step() marks ProfilerStep#N",
            ),
            ("no record_shapes, no with_stack", "both stretch the host and are not needed"),
        ),
        (
            "Memory: profile_memory=True adds it, with some host time.",
            *_missing_ranks(wish),
            _NO_LOG,
        ),
        "moe-advisor analyze 'moe.rank*.json.gz'",
    )
