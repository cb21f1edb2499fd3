"""A budget and what a result says of it; outputs know no more than this."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["error", "warn"]
Scope = Literal["run", "rank", "step"]
Outcome = Literal["pass", "fail", "not_measured"]


@dataclass(frozen=True, slots=True)
class Budget:
    """One requirement: `expect` is a CEL expression that must be true.

    `if_not_measured` says what an answer that can't be had counts as; fail is the default.
    `line` is the line of its name in `source`, 1 where it can't be found.
    """

    name: str
    expect: str
    level: Level = "error"
    message: str = ""
    scope: Scope = "run"
    if_not_measured: Literal["fail", "pass"] = "fail"
    source: str = ""
    line: int = 1

    @property
    def where(self) -> str:
        """Where it stands, for messages; one of the command line has no name of its own."""
        if self.source.startswith("--"):
            return f"{self.source} {self.expect!r}"
        return f"{self.source}: budget {self.name!r}"


@dataclass(frozen=True, slots=True)
class Judged:
    """A budget with its outcome; `detail` gives the numbers, `where` the ranks or steps missed."""

    budget: Budget
    outcome: Outcome
    detail: str
    where: tuple[str, ...] = ()

    @property
    def missed(self) -> bool:
        """Whether it counts as missed at its level: failed, or not measured and not excused."""
        if self.outcome == "not_measured":
            return self.budget.if_not_measured == "fail"
        return self.outcome == "fail"

    @property
    def breaks(self) -> bool:
        """Whether it makes the whole check fail."""
        return self.missed and self.budget.level == "error"
