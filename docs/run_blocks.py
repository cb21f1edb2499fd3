"""Runs the bash blocks of pages and checks what they print: `python docs/run_blocks.py PAGE...`.

A page is one shell session, in an empty folder that has the repository's folders as links. A block
behind `<!-- not run: REASON -->` is left out. A `text` block right after a bash block is what it
must print: its lines in this order, others may stand between; `...` stands for any text. A block
behind `<!-- exits: N -->` must end with that code.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LINKS = ("tests", "rules", "integrations", "moe_advisor", "docs", "lab", "benchmarks")
MARK = "@@@ block"

_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>not run|exits): (?P<reason>[^>]+?) -->\n+)?"
    r"^(?P<pad> *)```bash\n(?P<code>.*?)^(?P=pad)```$"
    r"(?:\n+(?P=pad)```text\n(?P<output>.*?)^(?P=pad)```$)?",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """One bash block: `skipped` is the reason why it is not run."""

    line: int
    code: str
    output: str
    skipped: str | None
    exits: int


def blocks(text: str) -> list[Block]:
    """The bash blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        pad = len(match["pad"])
        lines = [line[pad:] for line in match["code"].splitlines()]
        output = "\n".join(line[pad:] for line in (match["output"] or "").splitlines())
        mark, reason = match["mark"], (match["reason"] or "").strip()
        found.append(
            Block(
                line=text[: match.start()].count("\n") + 1,
                code="\n".join(lines),
                output=output,
                skipped=reason if mark == "not run" else None,
                exits=int(reason) if mark == "exits" else 0,
            )
        )
    return found


def run(page: Path, environment: dict[str, str], place: Path | None = None) -> list[str]:
    """Runs a page, in the folder `place` if given; returns what went wrong, block by block."""
    todo = [one for one in blocks(page.read_text(encoding="utf-8")) if one.skipped is None]
    if not todo:
        return []
    script = ["set -uo pipefail"]
    for number, one in enumerate(todo):
        # Each block stops at its first failing command; what it sets is there for the next one.
        script += [f"set -e; trap 'echo \"{MARK} {number} $?\"' EXIT" if one.exits else "set -e"]
        if one.exits:
            script += [f"( {one.code}\n) && code=0 || code=$?", f'echo "{MARK} {number} $code"']
            script += ["trap - EXIT"]
        else:
            script += [one.code, f'echo "{MARK} {number} 0"']
    with tempfile.TemporaryDirectory() as folder:
        for name in LINKS if place is None else ():
            (Path(folder) / name).symlink_to(ROOT / name)
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=place or folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=900,
            check=False,
        )
    return _judge(page, todo, done.stdout)


def _judge(page: Path, todo: list[Block], said: str) -> list[str]:
    problems = []
    rest = said
    for number, one in enumerate(todo):
        found = re.search(rf"^{MARK} {number} (\d+)$", rest, re.MULTILINE)
        where = f"{page.name}:{one.line}"
        if not found:
            return [*problems, f"{where}: failed:\n{rest[-1500:]}"]
        printed, rest = rest[: found.start()], rest[found.end() :]
        if int(found[1]) != one.exits:
            problems.append(f"{where}: exit {found[1]}, not {one.exits}:\n{printed[-800:]}")
        at = 0
        for line in filter(None, map(str.strip, one.output.splitlines())):
            if line == "...":
                continue
            pattern = ".*?".join(re.escape(part.strip()) for part in _squeeze(line).split("..."))
            hit = re.compile(pattern).search(_squeeze(printed), at)
            if not hit:
                problems.append(f"{where}: does not print {line!r}, but:\n{printed[-1500:]}")
                break
            at = hit.end()
    return problems


def _squeeze(text: str) -> str:
    return "\n".join(" ".join(line.split()) for line in text.splitlines())


if __name__ == "__main__":
    import os

    failures = [text for name in sys.argv[1:] for text in run(Path(name), dict(os.environ))]
    sys.exit("\n".join(failures) or 0)
