"""moe-advisor reads a profile of Mixture-of-Experts training and says what to change.

    import moe_advisor as ma

    result = ma.analyze("run.sqlite")
    result.metrics["ep_a2a_exposed_ms"].value

Everything public is listed in `__all__` and described in docs/python-api.md. Importing this package
is cheap: what a name needs is imported when the name is first used.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from moe_advisor.api import Analysis as Analysis
    from moe_advisor.api import Metrics as Metrics
    from moe_advisor.api import analyze as analyze
    from moe_advisor.api import load as load
    from moe_advisor.errors import ConfigError as ConfigError
    from moe_advisor.errors import InputError as InputError
    from moe_advisor.errors import MoeAdvisorError as MoeAdvisorError
    from moe_advisor.result import MetricValue as MetricValue
    from moe_advisor.result import Recommendation as Recommendation
    from moe_advisor.result import Result as Result

_HOMES = {
    "Analysis": "moe_advisor.api",
    "Metrics": "moe_advisor.api",
    "analyze": "moe_advisor.api",
    "load": "moe_advisor.api",
    "ConfigError": "moe_advisor.errors",
    "InputError": "moe_advisor.errors",
    "MoeAdvisorError": "moe_advisor.errors",
    "MetricValue": "moe_advisor.result",
    "Recommendation": "moe_advisor.result",
    "Result": "moe_advisor.result",
}

__all__ = [  # noqa: RUF022 - the two functions first: what a reader looks for
    "analyze",
    "load",
    "Analysis",
    "Metrics",
    "MetricValue",
    "Recommendation",
    "Result",
    "MoeAdvisorError",
    "InputError",
    "ConfigError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """A public name, imported at its first use (PEP 562)."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
