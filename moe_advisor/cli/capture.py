"""`moe-advisor capture`: the exact profiling command for a framework."""

import re

import click

from moe_advisor.capture import FRAMEWORKS, LAUNCHERS, MAX_STEPS, WARM_STEPS

MAX_RANKS = 4096


def _ranks(_: click.Context, __: click.Parameter, value: str | None) -> tuple[int, ...] | None:
    """0-7,16 as numbers."""
    if value is None:
        return None
    found: list[int] = []
    for part in value.split(","):
        match = re.fullmatch(r"\s*(\d{1,6})(?:-(\d{1,6}))?\s*", part)
        if not match:
            raise click.BadParameter(f"{part.strip()[:40]!r} is no rank: write 0-7 or 0,8")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last - first >= MAX_RANKS:
            raise click.BadParameter(f"{part.strip()}: a range goes up, over {MAX_RANKS} at most")
        found += range(first, last + 1)
    return tuple(dict.fromkeys(found))


@click.command(
    epilog="""\b
examples:
  moe-advisor capture --framework megatron-lm --ranks 0-7
  moe-advisor capture --framework megatron-lm --launcher srun --ep 8 --pp 4 --world-size 64
  moe-advisor capture --framework torch --profiler torch --steps 3
"""
)
@click.option("--framework", type=click.Choice(FRAMEWORKS), required=True)
@click.option("--profiler", type=click.Choice(["nsys", "torch"]), help="nsys, but torch for torch.")
@click.option(
    "--start", type=click.IntRange(0), default=WARM_STEPS, show_default=True, help="First step."
)
@click.option(
    "--steps", type=click.IntRange(1, MAX_STEPS), default=3, show_default=True, help="Whole steps."
)
@click.option(
    "--ranks",
    callback=_ranks,
    metavar="LIST",
    help="Ranks, such as 0-7; else rank 0, or what --ep and --pp say.",
)
@click.option(
    "--ep",
    type=click.IntRange(1, MAX_RANKS),
    metavar="N",
    help="Expert-parallel size: captures the first group.",
)
@click.option(
    "--pp",
    type=click.IntRange(1, MAX_RANKS),
    metavar="N",
    help="Pipeline stages: captures a rank of each; needs --world-size.",
)
@click.option("--world-size", type=click.IntRange(1), metavar="N", help="GPUs of the job.")
@click.option(
    "--launcher",
    type=click.Choice(LAUNCHERS),
    default=LAUNCHERS[0],
    show_default=True,
    help="What starts the ranks: nsys goes before torchrun and behind srun.",
)
def capture(
    framework: str,
    profiler: str | None,
    start: int,
    steps: int,
    ranks: tuple[int, ...] | None,
    ep: int | None,
    pp: int | None,
    world_size: int | None,
    launcher: str,
) -> None:
    """Print the minimal profiling command with the reason for each part."""
    from moe_advisor.capture import MB_PER_STEP_RANK, Wish, advice, group_ranks, size_mb

    if ranks is not None and (ep or pp):
        raise click.UsageError("--ranks already says which: leave out --ep and --pp")
    ranks = ranks or group_ranks(ep or 1, pp or 1, world_size)
    if world_size is not None and max(ranks) >= world_size:
        raise click.UsageError(f"--ranks: rank {max(ranks)} of {world_size} does not exist")
    chosen = profiler or ("torch" if framework == "torch" else "nsys")
    wish = Wish(framework, chosen, start, steps, ranks, world_size, launcher)
    found = advice(wish)
    lines = [found.title, ""]
    for title, text in found.blocks:
        lines += [f"{title}:", "", *(f"  {line}" if line else "" for line in text.split("\n")), ""]
    lines += ["Why:"]
    lines += [f"  {part}: {reason}" for part, reason in found.reasons]
    recorded = f"{steps} step{'s' if steps > 1 else ''}"
    if size_mb(wish) > MB_PER_STEP_RANK[chosen] * steps * len(ranks):
        recorded += " and one for the edges"
    rank_words = f"{len(ranks)} rank{'s' if len(ranks) > 1 else ''}"
    lines += [
        "",
        f"Expect about {size_mb(wish):.0f} MB: {MB_PER_STEP_RANK[chosen]:.0f} MB a step and rank "
        f"for a few thousand kernels, {recorded}, {rank_words}; it grows with the kernels.",
        "",
        "What this capture lacks:",
        *(f"  {text}" for text in found.lacks),
        "",
        f"Then: {found.then}",
    ]
    click.echo("\n".join(lines))
