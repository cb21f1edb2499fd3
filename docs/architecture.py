"""The diagram of the data flow: its rooms and arrows as data, drawn as one SVG.

`tests/docs/test_architecture.py` holds the arrows against the imports of the package.
"""

from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Room:
    """A package or module; `column` and `row` place it."""

    name: str
    job: str
    column: int
    row: int


@dataclass(frozen=True)
class Arrow:
    """Data goes from `start` to `end` as what `through` defines.

    `through` is the module that holds the types: the room itself where the next one imports it,
    else a contract that both import.
    """

    start: str
    end: str
    through: str


ROOMS = (
    Room("ingest", "traces and config to tables", 0, 0),
    Room("roles", "what each activity is for", 1, 0),
    Room("measure", "numbers of a rank, merged", 2, 0),
    Room("walls", "verdict and margin", 3, 0),
    Room("whatif", "replayed step, ranges", 2, 1),
    Room("advise", "rules and one plan", 3, 1),
    Room("output", "pure renderings", 2, 2),
    Room("compare", "two results, with noise", 3, 2),
    Room("history", "results over time", 3, 3),
    Room("budgets", "a result against limits", 1, 2),
)

ARROWS = (
    Arrow("ingest", "roles", "model"),
    Arrow("roles", "measure", "roles"),
    Arrow("measure", "walls", "result"),
    Arrow("measure", "whatif", "measure"),
    Arrow("measure", "advise", "measure"),
    Arrow("whatif", "advise", "result"),
    Arrow("advise", "output", "result"),
    Arrow("advise", "compare", "result"),
    Arrow("advise", "budgets", "advise"),
    Arrow("compare", "output", "compare"),
    Arrow("compare", "history", "compare"),
    Arrow("budgets", "output", "budgets"),
    Arrow("history", "output", "history"),
    Arrow("output", "history", "output"),  # a run is kept as the bytes of output.json_output
)

CONTRACTS = {"model": "tables of one rank", "result": "result.json"}
"""Modules that only define what is handed over."""

ORCHESTRATORS = ("analysis", "cli")
"""They call the rooms in order; data goes through them, so every import of theirs is allowed."""

WIDTH, HEIGHT, GAP_X, GAP_Y, MARGIN = 206, 64, 46, 46, 20

STYLE = """\
text{font:13px system-ui,sans-serif;fill:#1c2430}.name{font-weight:600;font-size:15px}
.room{fill:#fff;stroke:#5b6b80;stroke-width:1.2}.arrow{stroke:#5b6b80;stroke-width:1.6;fill:none}
.tip{fill:#5b6b80}.through{font-size:12px;fill:#4a5a70}.ground{fill:#f6f8fa}
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.room{fill:#1d2530;stroke:#8b9bb0}
.arrow{stroke:#8b9bb0}.tip{fill:#8b9bb0}.through{fill:#a9b8cc}.ground{fill:#12171e}}"""


def _corner(room: Room) -> tuple[int, int]:
    return (
        MARGIN + room.column * (WIDTH + GAP_X),
        MARGIN + room.row * (HEIGHT + GAP_Y),
    )


def _line(arrow: Arrow, rooms: dict[str, Room]) -> str:
    """A straight arrow between the facing sides of two rooms."""
    start, end = rooms[arrow.start], rooms[arrow.end]
    (x1, y1), (x2, y2) = _corner(start), _corner(end)
    across, down = end.column - start.column, end.row - start.row
    if down == 0:
        side = WIDTH if across > 0 else 0
        a = (x1 + side, y1 + HEIGHT // 2)
        b = (x2 + (0 if across > 0 else WIDTH), y2 + HEIGHT // 2)
    else:
        shift = 60 * max(-1, min(1, across))
        a = (x1 + WIDTH // 2 + shift, y1 + (HEIGHT if down > 0 else 0))
        b = (x2 + WIDTH // 2 - shift, y2 + (0 if down > 0 else HEIGHT))
    word = arrow.through if arrow.through in CONTRACTS else ""
    label = (
        f'<text class="through" text-anchor="middle" x="{(a[0] + b[0]) // 2}" '
        f'y="{(a[1] + b[1]) // 2 - 6}">{word}</text>'
        if word
        else ""
    )
    return f'<path class="arrow" marker-end="url(#tip)" d="M{a[0]} {a[1]}L{b[0]} {b[1]}"/>{label}'


def svg() -> str:
    """The picture."""
    rooms = {room.name: room for room in ROOMS}
    columns = 1 + max(room.column for room in ROOMS)
    rows = 1 + max(room.row for room in ROOMS)
    width = 2 * MARGIN + columns * WIDTH + (columns - 1) * GAP_X
    height = 2 * MARGIN + rows * HEIGHT + (rows - 1) * GAP_Y
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="Data flow from ingest to output"><style>{STYLE}</style>',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" orient="auto"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
        f'<rect class="ground" width="{width}" height="{height}" rx="8"/>',
        *(_line(arrow, rooms) for arrow in ARROWS),
    ]
    for room in ROOMS:
        x, y = _corner(room)
        parts.append(
            f'<rect class="room" x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text class="name" x="{x + 12}" y="{y + 27}">{room.name}</text>'
            f'<text x="{x + 12}" y="{y + 48}">{escape(room.job)}</text>'
        )
    x, y = MARGIN, MARGIN + HEIGHT + GAP_Y
    notes = [
        "analysis calls the rooms in this order;",
        "cli parses, calls and sets exit codes.",
        *(f"{name}.py: {text}" for name, text in CONTRACTS.items()),
        "Arrow without a word: the next room",
        "imports the one before.",
    ]
    parts += [f'<text x="{x}" y="{y + 20 + 20 * i}">{note}</text>' for i, note in enumerate(notes)]
    return "\n".join([*parts, "</svg>"]) + "\n"
