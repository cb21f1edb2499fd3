"""Launch commands and scripts: flags, overrides and variables, read without running anything."""

import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from moe_advisor.ingest.config_values import PRECISIONS, SECTIONS, list_of, number, precision, put
from moe_advisor.keys import environment_names, known

MIN_FLAGS_FOR_DEFAULTS = 5
"""A Megatron-LM command sets dozens of flags; with fewer it is a fragment, not the whole."""

_ASSIGNMENT = re.compile(r"^([A-Za-z_]\w*)=(.*)$", re.DOTALL)
_OVERRIDE = re.compile(r"^\+{0,2}(?:cfg\.)?([a-z_]+(?:\.[A-Za-z_0-9]+)+)=(.*)$", re.DOTALL)
_PYTHON = re.compile(r"^\s*(?:cfg|config|recipe)\.([a-z_]+(?:\.[A-Za-z_0-9]+)+)\s*=\s*(.+?)\s*$")
_REFERENCE = re.compile(r"\$\{?(\w+)(\[[@*]\])?\}?")
_NO_FLAGS = frozenset({"SCRIPT", "LAUNCHER", "PYTHON", "CMD_PREFIX"})
"""Variables that stand alone in a command and by their names hold a program, not flags."""

_ENVIRONMENT_FLAGS = frozenset({"--export", "--env", "-e", "-x"})
MAX_EXPANSIONS = 200
"""Variables opened in one script: one that holds itself must end."""

_ARGUMENTS = ("$@", "$*", "${@}", "${*}")
LINE_END = "\n"
"""Stands between the lines of a script: no flag takes its values from the next line."""

MAX_QUOTES = 3
"""Commands inside quoted commands."""

_PLACE = re.compile(r"\$\{(\w+)(?::?-([^}]*))?\}|\$(\w+)")


_BRANCH = re.compile(r"(?:^|[;&|]|\bthen\b|\belse\b|\bdo\b)\s*(if|case|fi|esac)\b")
"""Where a script's command begins or ends a branch."""


def read(text: str) -> tuple[dict[str, Any], str, bool]:
    """Flags, overrides and variables of a launch command or script, without running it.

    Also tells the framework, and whether what is not set has its default. What only a branch sets
    (`if`, `case`) may be set or not: it is left out, unless all else says the same.
    """
    always, sometimes = _branches(text)
    raw, framework, whole = _read(always)
    if not raw:  # all of the script is one branch
        return _read(text)
    doubtful = {key for key, value in _read(sometimes)[0].items() if raw.get(key) != value}
    kept = {key: value for key, value in raw.items() if key not in doubtful}
    return kept, framework, whole and not doubtful


def _branches(text: str) -> tuple[str, str]:
    """The lines of a script that always run, and those that a branch may pass over."""
    lines: tuple[list[str], list[str]] = ([], [])
    depth = 0
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        words = _BRANCH.findall(line.partition(" #")[0])
        opened = sum(word in ("if", "case") for word in words)
        lines[bool(depth or opened)].append(line)
        depth = max(depth + 2 * opened - len(words), 0)
    return "\n".join(lines[0]), "\n".join(lines[1])


def _read(text: str) -> tuple[dict[str, Any], str, bool]:
    raw: dict[str, Any] = {}
    variables: dict[str, str] = {}
    tokens: list[str] = []
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        python = _PYTHON.match(line)
        if python and python[1].partition(".")[0] in SECTIONS:
            put(raw, python[1].partition(".")[0], python[1].rpartition(".")[2], python[2])
            continue
        tokens += [*_tokens(line), LINE_END]
    unresolved = False
    flags = 0
    position = 0
    expansions = 0
    switches = _switches()
    while position < len(tokens):
        token = tokens[position]
        position += 1
        override = _OVERRIDE.match(token)
        assignment = _ASSIGNMENT.match(token)
        reference = _REFERENCE.fullmatch(token)
        if override and override[1].partition(".")[0] in SECTIONS:
            value = _expand(override[2], variables)
            if value is not None:
                section, _, _ = override[1].partition(".")
                put(raw, section, override[1].rpartition(".")[2], value)
        elif assignment and not token.startswith("-"):
            name, value = assignment[1], _expand(assignment[2], variables)
            if value is not None:
                variables[name] = value
                _variable(raw, name, value)
            elif " " in assignment[2]:
                variables[name] = assignment[2]  # words, some of them still unknown
        elif reference and not reference[2]:
            # A variable that stands alone holds words of the command, or nothing that is known.
            words = variables.get(reference[1])
            if words is None:
                unresolved |= reference[1] not in _NO_FLAGS
            elif expansions < MAX_EXPANSIONS:
                expansions += 1
                tokens[position:position] = _tokens(words)
        elif token.startswith("-") and len(token) > 1:
            flag, separator, joined = token.partition("=")
            values = [joined] if separator else []
            while (
                not separator
                and position < len(tokens)
                and not _starts(tokens[position], variables)
            ):
                values.append(tokens[position])
                position += 1
            if flag in _ENVIRONMENT_FLAGS:
                _exports(raw, values, variables)
                continue
            # A switch is followed by no value: what stands there is the next word.
            if values and flag in switches and switches[flag][1] == "bool":
                position -= len(values) - 1 if _is_truth(values[0]) else len(values)
                values = values[:1] if _is_truth(values[0]) else []
            expanded = [_expand(value, variables) for value in values]
            flags += _flag(raw, flag, expanded, switches)
        elif reference or token in _ARGUMENTS:
            unresolved |= reference is None or not re.search(
                rf"\b{reference[1]}\+?=\(|\b{reference[1]}=", text
            )
    megatron_lm = flags >= MIN_FLAGS_FOR_DEFAULTS
    overrides = any("." in token.partition("=")[0] and "=" in token for token in tokens)
    framework = "megatron-lm" if flags else "megatron-bridge" if raw and overrides else ""
    return raw, framework, megatron_lm and not unresolved


def _variable(raw: dict[str, Any], name: str, value: str) -> None:
    """Take a variable that is a setting itself: of the environment, or a precision recipe."""
    if name in environment_names():
        raw[name] = value
    elif name == "WORLD_SIZE":
        raw["world_size"] = value
    elif name == "mixed_precision" and "mixed" in value:
        raw |= precision(value)


def _exports(raw: dict[str, Any], values: Iterable[str], variables: dict[str, str]) -> None:
    """Variables that a launcher sets: `srun --export=ALL,A=1`, `mpirun -x A=1`, `docker -e A=1`."""
    for part in (part for value in values for part in value.split(",")):
        found = _ASSIGNMENT.match(part)
        value = _expand(found[2], variables) if found else None
        if found and value is not None:
            _variable(raw, found[1], value)


def _is_truth(text: str) -> bool:
    return text.lower() in ("true", "false", "0", "1")


def _tokens(line: str, depth: int = 0) -> list[str]:
    """The words of a shell line; a quoted command inside it (`bash -c "..."`) is opened too."""
    lexer = shlex.shlex(line[: 2**16], posix=True)
    lexer.whitespace_split = True
    lexer.commenters = "" if depth else "#"
    try:
        words = list(lexer)
    except ValueError:  # an open quote: a string over several lines
        words = [word.strip("\"'") for word in line.split()]
    found: list[str] = []
    for word in words:
        assignment = _ASSIGNMENT.match(word)
        if " --" in word and not assignment and not word.startswith("-") and depth < MAX_QUOTES:
            found += _tokens(word, depth + 1)
        else:
            parts = word.split(";") if assignment and " " not in word else [word.rstrip(";")]
            found += [token for token in (_bare(part) for part in parts) if token]
    return found


def _bare(token: str) -> str:
    """A token without what arrays of a shell script put around it."""
    if re.match(r"^[A-Za-z_]\w*\+?=\($", token):
        return ""
    opened = re.match(r"^[A-Za-z_]\w*\+?=\((-.*)$", token)
    if opened:
        token = opened[1]
    if token.count(")") > token.count("("):
        return token.removesuffix(")")
    if token.count("(") > token.count(")"):
        return token.lstrip("(")
    return token[1:-1] if token.startswith("(-") and token.endswith(")") else token


def _starts(token: str, variables: Mapping[str, str]) -> bool:
    """Whether a token begins something new rather than being a flag's value."""
    if token in (*_ARGUMENTS, LINE_END, "&&", "||", ";", "|", "&", ">", ">>", "2>&1"):
        return True
    reference = _REFERENCE.fullmatch(token)
    if reference and (reference[2] or variables.get(reference[1], "").lstrip().startswith("-")):
        return True
    if re.match(r"^-\d", token):
        return False
    return token.startswith("-") or bool(_OVERRIDE.match(token))


def _switches() -> dict[str, tuple[str, str, Any]]:
    """Flag -> (key, kind, value of a bare switch)."""
    found: dict[str, tuple[str, str, Any]] = {}
    for key in known().values():
        if key.flag:
            found[key.flag] = (key.name, key.kind, True)
        if key.off:
            found[key.off] = (key.name, "bool", False)
        for old in key.old:
            if old.flag:
                kind = "bool" if old.to or key.kind == "bool" else key.kind
                found[old.flag] = (old.key, kind, True)
    found |= {
        "--num-layers-per-virtual-pipeline-stage": (
            "num_layers_per_virtual_pipeline_stage",
            "int",
            None,
        ),
        "--recompute-activations": ("recompute_activations", "bool", True),
        "--no-check-for-nan-in-loss-and-grad": ("check_for_nan_in_loss_and_grad", "bool", False),
        "--moe_a2a_overlap": ("overlap_moe_expert_parallel_comm", "bool", True),
        "--num_gpus": ("world_size", "int", None),
        "-ng": ("world_size", "int", None),
        "--gpu": ("gpu_name", "str", None),
        "-g": ("gpu_name", "str", None),
        "--fake-process-group": ("fake_process_group", "bool", True),
        "--ckpt-format": ("ckpt_format", "str", None),
        "--nproc_per_node": ("_gpus_per_node", "int", None),
        "--nproc-per-node": ("_gpus_per_node", "int", None),
        "--nnodes": ("_nodes", "int", None),
    }
    return found


def _flag(
    raw: dict[str, Any],
    flag: str,
    values: list[str | None],
    switches: Mapping[str, tuple[str, str, Any]],
) -> int:
    """Take one flag with its values; 1 if Megatron-LM knows it, else 0."""
    if flag in ("-c", "--compute_dtype") and values and values[0] in ("bf16", *PRECISIONS):
        raw |= precision(str(values[0]))
        return 0
    if flag not in switches:
        return 0
    key, kind, bare = switches[flag]
    if any(value is None for value in values):
        return 1
    if kind == "bool":
        text = str(values[0]).lower() if values else ""
        raw[key] = bare if text not in ("true", "false", "0", "1") else text in ("true", "1")
        if flag == "--moe_a2a_overlap":  # the harness switch sets two settings
            raw["delay_wgrad_compute"] = raw[key]
    elif kind == "list":
        raw[key] = [item for value in values for item in list_of(value) or []]
    elif values:
        raw[key] = values[0]
    if "_nodes" in raw and "_gpus_per_node" in raw:
        nodes, gpus = number(raw["_nodes"]), number(raw["_gpus_per_node"])
        if isinstance(nodes, int) and isinstance(gpus, int):
            raw["world_size"] = nodes * gpus
    return int(flag.startswith("--") and "_" not in flag)


def _expand(value: str, variables: Mapping[str, str]) -> str | None:
    """A value with the script's own variables put in; None while one is not known."""
    unknown = False

    def put(match: re.Match[str]) -> str:
        nonlocal unknown
        name = match[1] or match[3]
        if name in variables:
            return variables[name]
        if match[2] is not None:
            return match[2]
        unknown = True
        return ""

    expanded = _PLACE.sub(put, value)
    return None if unknown or "$(" in expanded or "`" in expanded else expanded
