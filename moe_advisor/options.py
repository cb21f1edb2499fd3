"""What a user can choose of an analysis."""

from dataclasses import dataclass, field

from moe_advisor import bounded


@dataclass(frozen=True)
class Options:
    """What a user can choose; paths are strings as given."""

    steps: str | None = None
    step_pattern: str | None = None
    taxonomy: str | None = None
    nsys: str | None = None
    cache: str | None = None
    rules: tuple[str, ...] = ()
    config: str | None = None
    log: str | None = None
    values: tuple[str, ...] = ()
    jobs: int | None = None
    max_expansion: int | None = None
    """Largest ratio of decompressed to compressed bytes of an input; None for the default."""
    executor: str = "local"
    """`local` processes or a `dask` cluster, for many inputs."""
    scheduler: str | None = None
    sample: int | None = None
    """Read at most so many inputs, chosen to represent the rest."""
    timeout_s: float | None = None
    """Longest time for one of many inputs; it is reported as unreadable then."""
    bounds: bounded.Bounds = field(default_factory=bounded.current)
    """What reading one input may cost."""
