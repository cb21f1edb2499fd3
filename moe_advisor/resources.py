"""Where the files that are not code are found: in the installed package, else in the checkout."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def rules_dir() -> Path:
    """Folder of the rules that ship with the program, one sub-folder per topic."""
    return _first(_PACKAGE / "rules", _CHECKOUT / "rules")


def templates_dir() -> Path:
    """Folder of the report templates."""
    return _first(_PACKAGE / "templates", _CHECKOUT / "reports" / "templates")


def demo_traces() -> list[Path]:
    """The bundled real trace, one file per rank, sorted by name; empty if none is installed."""
    folder = _PACKAGE / "demo"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.endswith((".json.gz", ".sqlite")))


def _first(*candidates: Path) -> Path:
    """The first folder that exists, else the last, so that an error can name it."""
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    return candidates[-1]
