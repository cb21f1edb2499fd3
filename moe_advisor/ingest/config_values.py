"""Values of run configurations as any text spells them: numbers, lists, enums, precisions."""

import ast
import math
import re
from collections.abc import Mapping
from typing import Any

SECTIONS = (
    "model",
    "ddp",
    "optimizer",
    "train",
    "dist",
    "rng",
    "rerun_state_machine",
    "profiling",
    "logger",
    "dataset",
    "checkpoint",
    "mixed_precision",
    "comm_overlap",
    "env_vars",
)
"""Top-level sections of a Bridge configuration that are read, later ones winning."""

ENUM = re.compile(r"^<?(?:\w+\.)*\w+\.(\w+)(?:: [^>]*)?>?$")
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "mxfp8": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
    "fp8_mx": {"fp8": "e4m3", "fp8_recipe": "mxfp8"},
    "nvfp4": {"fp4": "e2m1", "fp4_recipe": "nvfp4"},
    "fp8_current_scaling": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "fp8_cs": {"fp8": "hybrid", "fp8_recipe": "tensorwise"},
    "fp8_delayed_scaling": {"fp8": "hybrid", "fp8_recipe": "delayed"},
    "fp8_subchannel_scaling": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
    "fp8_sc": {"fp8": "e4m3", "fp8_recipe": "blockwise"},
}


def put(raw: dict[str, Any], section: str, key: str, value: Any) -> None:
    """Add one value of a Bridge section to `raw`, by the name that it has in the model section."""
    # What comm_overlap and mixed_precision leave to the framework is in the model section.
    if section in ("comm_overlap", "mixed_precision") and value in (None, "None"):
        return
    if section == "dataset" and key == "sequence_length":
        key = "seq_length"
    if section == "mixed_precision" and key == "fp8_param":
        key = "fp8_param_gather"
    raw[key] = value


def precision(recipe: str) -> dict[str, Any]:
    """What a named precision recipe (`bf16_with_mxfp8_mixed`, `fp8_cs` ...) sets."""
    found: dict[str, Any] = {"bf16": "fp16" not in recipe, "fp16": "fp16" in recipe}
    for part, values in PRECISIONS.items():
        if part in recipe:
            return found | dict(values)
    return found | {"fp8": None, "fp4": None}


def literal(text: str, kind: str) -> Any:
    """A text as a value of the kind: None, truth, number or the text without its quotes."""
    if text in ("None", "null", "~", ""):
        return None
    if kind == "bool" or (kind == "" and text.lower() in ("true", "false")):
        return {"true": True, "false": False, "1": True, "0": False}.get(text.lower(), text)
    if kind in ("int", "float", ""):
        found = number(text)
        if found is not None:
            return found
    if text[:1] in "\"'" and text[-1:] == text[:1] and len(text) > 1:
        return text[1:-1]
    return text


NUMBER_DIGITS = 18  # the largest count or byte size of any run fits
MOST = 10.0**NUMBER_DIGITS


def number(text: Any) -> int | float | None:
    """A finite number of bounded size, or None."""
    if isinstance(text, int | float):
        return text if abs(text) < MOST else None
    if len(str(text)) > NUMBER_DIGITS:
        return None
    try:
        return int(str(text).replace("_", ""))
    except ValueError:
        pass
    try:
        number = float(str(text))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def list_of(value: Any) -> list[Any] | None:
    """A list from a list, a comma-separated text, a Python list or a list of enum members."""
    if value is None:
        return None
    if isinstance(value, str):
        inner = value.strip()
        if inner in ("None", "null", ""):
            return None
        if inner.startswith("[") and inner.endswith("]"):
            try:
                parsed = ast.literal_eval(inner[:4096])
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                parsed = [part.strip() for part in inner[1:-1].split(",")]
            value = parsed if isinstance(parsed, list) else [parsed]
        else:
            value = [part for part in re.split(r"[,\s]+", inner) if part]
    if not isinstance(value, list | tuple):
        value = [value]
    found = []
    for item in value:
        text = str(item).strip().strip("'\"") if not isinstance(item, int | float) else item
        match = ENUM.match(text) if isinstance(text, str) else None
        if text != "":
            found.append(match[1] if match else text)
    return found
