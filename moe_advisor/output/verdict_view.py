"""The verdict and the walls in words and shares, and what could not be measured."""

from dataclasses import dataclass

from moe_advisor.output.formatting import number, plural, share
from moe_advisor.output.run_view import ranks_read, step_ms
from moe_advisor.output.tile_view import tiles
from moe_advisor.result import Result, WallPart

WALLS = ("communication", "compute_host", "memory")


WALL_TITLES = {
    "memory": "Memory",
    "communication": "Communication",
    "compute_host": "Compute & host",
    "capture": "Capture",
}


LIMITERS = {
    "ep_a2a": "EP all-to-all",
    "dp_collective": "DP collectives",
    "tp_collective": "TP collectives",
    "cp_collective": "CP collectives",
    "pp": "pipeline",
    "imbalance": "imbalance",
    "host": "host",
    "compute": "compute",
    "slow_gpu": "a slow GPU",
    "recompute": "recompute",
    "allocator": "allocator",
    "capacity": "capacity",
}


VERDICTS = {
    "memory": "Memory wall",
    "communication": "Communication wall",
    "compute_host": "Compute & host wall",
    "mixed": "Mixed: no single wall",
    "inconclusive": "Inconclusive",
}


LITTLE = 0.05
"""Below this share of the step no wall limits a run much (the threshold the walls use)."""


@dataclass(frozen=True, slots=True)
class WallRow:
    """One wall: its score, its parts, what of it is not measured."""

    wall: str
    title: str
    score: float
    limiter: str
    tag: str
    segments: tuple[tuple[str, str, float], ...]
    """Label, kind and share of each part."""
    missing: str | None


def verdict_label(result: Result) -> str:
    """The verdict in a word or two."""
    if little(result):
        return "No wall near"
    return VERDICTS[result.walls.verdict]


def verdict_tone(result: Result) -> str:
    """`bad` for a wall, `warn` for an open verdict, `good` where nothing limits much."""
    if result.walls.verdict in ("mixed", "inconclusive"):
        return "warn"
    return "good" if little(result) else "bad"


def little(result: Result) -> bool:
    """Whether nothing limits the run much."""
    walls = result.walls
    return walls.verdict == "compute_host" and max(walls.scores.values(), default=0.0) < LITTLE


def verdict_detail(result: Result) -> str:
    """Limiter and margin in a few words."""
    walls = result.walls
    words = []
    if walls.limiter:
        words.append(f"limiter {limiter(walls.limiter)}")
    if step_ms(result) and walls.verdict != "inconclusive":
        words.append(f"margin {number(walls.margin * 100)} points")
    return " · ".join(words)


def limiter(name: str) -> str:
    """A limiter in words."""
    return LIMITERS.get(name, name.replace("_", " "))


def partial_prefix(result: Result) -> str:
    """What opens the verdict where ranks are missing."""
    ranks, world = ranks_read(result), result.run.world_size
    if world and 0 < len(ranks) < world:
        return f"From {plural(len(ranks), 'rank')} of {world} only: "
    return ""


def wall_rows(result: Result) -> list[WallRow]:
    """The walls, highest score first."""
    walls = result.walls
    ordered = sorted(WALLS, key=lambda wall: -walls.scores.get(wall, 0.0))
    if walls.verdict in WALLS:
        ordered.sort(key=lambda wall: wall != walls.verdict)
    rows = []
    for wall in ordered:
        parts = [part for part in walls.parts if part.wall == wall and part.share > 0]
        missing = walls.not_measured.get(wall)
        if wall == walls.verdict and walls.limiter:
            what = f"limiter: {limiter(walls.limiter)}"
        elif parts:
            what = f"limiter: {limiter(max(parts, key=lambda part: part.share).part)}"
        else:
            what = "nothing found"
            if missing:
                what = "partly measured" if judged(result) else "not measured"
        if missing and parts:
            what += ", partly measured"
        mixed = walls.verdict == "mixed" and wall in ordered[:2]
        tag = "level" if mixed else "next wall" if wall == walls.next else ""
        rows.append(
            WallRow(
                wall=wall,
                title=WALL_TITLES[wall],
                score=walls.scores.get(wall, 0.0),
                limiter=what,
                tag=tag,
                segments=tuple((part.label, _wall_kind(part), part.share) for part in parts),
                missing=missing,
            )
        )
    return rows


def judged(result: Result) -> bool:
    """Whether the walls hold anything measured: without it a score of 0 means nothing."""
    return bool(result.walls.parts) or any(result.walls.scores.values()) or bool(step_ms(result))


def wall_score(result: Result, row: WallRow) -> str:
    """A wall's score as printed; a dash for a 0 of which part, or all, was not measured."""
    unknown = row.missing is not None and not row.score
    return "–" if unknown or not judged(result) else share(row.score)


def not_recoverable(result: Result) -> float:
    """The share of the step that no wall claims."""
    return max(0.0, 1.0 - sum(max(0.0, score) for score in result.walls.scores.values()))


def _wall_kind(part: WallPart) -> str:
    if part.wall == "memory":
        return "memory"
    if part.part in ("imbalance", "slow_gpu") or "waiting" in part.label.lower():
        return "wait"
    if part.part == "ep_a2a":
        return "hidden" if "slowed" in part.label.lower() else "wire"
    if part.wall == "communication":
        return "comm"
    return "host" if part.part == "host" else "compute"


def open_questions(result: Result) -> list[str]:
    """What could not be measured among headlines and walls, each with the way to get it."""
    by_reason: dict[str, list[str]] = {}
    for tile in tiles(result):
        if not tile.figure.measured and tile.lines:
            by_reason.setdefault(tile.lines[0], []).append(tile.title)
    found = [f"{', '.join(titles)}: {reason}" for reason, titles in by_reason.items()]
    for wall in WALLS:
        text = result.walls.not_measured.get(wall)
        if text:
            line = f"{WALL_TITLES[wall]} wall: {text}"
            # The wall often repeats what its headline figure says already.
            if not any(reason in text for reason in by_reason):
                found.append(line)
    return list(dict.fromkeys(found))
