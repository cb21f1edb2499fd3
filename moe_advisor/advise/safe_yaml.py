"""The one way YAML of this package is read: the safe loader, in C where it is there."""

from typing import Any


def load(text: str) -> Any:
    """The document in `text` as plain data. Raises yaml.YAMLError."""
    import yaml

    try:
        return yaml.load(text, Loader=loader())  # noqa: S506 - a subclass of the safe loader
    except (ValueError, RecursionError) as error:  # a date of month 99, a number of 5,000 digits
        raise yaml.YAMLError(str(error)) from error


def loader() -> Any:
    """The C version of the safe loader, else the Python one."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)
