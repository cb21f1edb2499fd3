"""Run configurations: Bridge YAML, Megatron-LM argument dumps, launch commands, key=value options.

Whatever the form, the result is one flat map by Megatron-Core field name (and environment
variable), with older spellings translated. Only keys of a closed list are kept, so paths, names
and secrets of a launch script never get further. Nothing is imported, called or executed.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moe_advisor import bounded
from moe_advisor.errors import ConfigError
from moe_advisor.ingest import launch_command
from moe_advisor.ingest.config_values import ENUM, SECTIONS, list_of, literal, precision, put
from moe_advisor.keys import KnownKey, environment_names, known
from moe_advisor.result import ConfigValue

MAX_BYTES = 64 * 2**20
"""A log with an argument dump may be long; a configuration is not."""

MAX_YAML_BYTES = 4 * 2**20
MAX_NODES = 200_000
"""Values visited in a YAML document: shared nodes (aliases) are counted each time."""

MAX_DEPTH = 8
MAX_TEXT = 200
"""Characters kept of a text value; no setting that matters is longer."""


OTHER_KEYS: Mapping[str, str] = {
    "framework": "str",
    "gpu_name": "str",
    "world_size": "int",
    "data_parallel_size": "int",
    "megatron_core_version": "str",
    "te_version": "str",
    "torch_version": "str",
    "deepep_installed": "bool",
    "peer_access": "bool",
    "params_dtype": "str",
    "ckpt_format": "str",
    "padded_vocab_size": "int",
    "vocab_size": "int",
    "train_iters": "int",
    "packed_sequences": "bool",
    "energon_native_packing": "bool",
    "pad_cu_seqlens": "bool",
    "fake_process_group": "bool",
    "hybrid_context_parallel": "bool",
    "all_layers_moe": "bool",
    "tensor_parallel_num_weight_shards": "int",
    "moe_permute_fusion_installed": "bool",
    "q_lora_rank": "int",
    "kv_lora_rank": "int",
    "qk_head_dim": "int",
    "qk_pos_emb_head_dim": "int",
    "v_head_dim": "int",
}
"""Keys that rules or figures read and no rule changes, with their kinds."""

_SHORT: Mapping[str, str] = {
    "ep": "expert_model_parallel_size",
    "etp": "expert_tensor_parallel_size",
    "tp": "tensor_model_parallel_size",
    "pp": "pipeline_model_parallel_size",
    "cp": "context_parallel_size",
    "vpp": "virtual_pipeline_model_parallel_size",
    "vp": "virtual_pipeline_model_parallel_size",
    "mbs": "micro_batch_size",
    "gbs": "global_batch_size",
    "seq": "seq_length",
    "gpu": "gpu_name",
    "dispatcher": "moe_token_dispatcher_type",
    "num_experts": "num_moe_experts",
    "topk": "moe_router_topk",
}
_FLEX_BACKENDS = ("deepep", "hybridep", "ncclep")


_SHAPE = frozenset(
    {
        "ffn_hidden_size", "global_batch_size", "hidden_size", "kv_channels", "micro_batch_size",
        "moe_ffn_hidden_size", "moe_router_topk", "num_attention_heads", "num_layers",
        "num_moe_experts", "num_query_groups", "seq_length",
    }
)  # fmt: skip
"""Sizes of the model and the batch: a text that does not give them leaves them unknown, since a
default here would drive an estimate that nobody asked for."""

_OLD_SWITCHES = (
    "enable_cuda_graph",
    "external_cuda_graph",
    "cuda_graph_scope",
    "moe_enable_deepep",
    "moe_deepep_num_sms",
    "moe_hybridep_num_sms",
    "moe_layer_recompute",
    "moe_router_padding_for_fp8",
    "recompute_activations",
    "check_for_nan_in_loss_and_grad",
    "num_layers_per_virtual_pipeline_stage",
    "no_overlap_p2p_communication",
)

_DUMP_START = re.compile(r"-{20,} arguments -{20,}")
_DUMP_END = re.compile(r"-{15,} end of arguments -{15,}")
_DUMP_LINE = re.compile(r"(?:^|\s{1,2})([A-Za-z0-9_]+) \.*\s(.*)$")
_BLOCK_TITLE = "Configuration Summary (Non-Default Values vs Megatron Core)"
_BLOCK_SECTION = re.compile(r"\[(\w+)\](?: Non-default values.*)?:\s*$")
_BLOCK_LINE = re.compile(r"^.*?\s{2,}(\w+): (.*?)(?:\s+\(Mcore default: .*\))?\s*$")


def load(path_or_text: Path | str) -> dict[str, ConfigValue]:
    """The configuration in a file, or in text that holds one, by Megatron-Core field name.

    The form is recognised by content: a Megatron-LM argument dump inside a log, the summary block
    of a Bridge log, Bridge YAML, or a launch command or script. Raises ConfigError when none is
    found or the file can't be read.
    """
    text, where = _text(path_or_text)
    if _DUMP_START.search(text):
        raw, framework, complete = _argument_dump(text), "megatron-lm", True
    elif _BLOCK_TITLE in text:
        raw, framework, complete = _bridge_block(text), "megatron-bridge", True
    else:
        document = _yaml_mapping(text, where)
        if document is not None:
            raw, complete = _bridge_yaml(document, where), False
            framework = "megatron-bridge" if _is_bridge(document) else "megatron"
        else:
            raw, framework, complete = launch_command.read(text)
    values = normalise(raw)
    if not values:
        raise ConfigError(
            f"{where}: no configuration found: give a Bridge YAML, a log with the argument dump, "
            "or a launch command"
        )
    found = {key: ConfigValue(value=value, source="config") for key, value in values.items()}
    if framework:
        found.setdefault("framework", ConfigValue(value=framework, source="config"))
    if complete:
        for key, value in _defaults(framework, raw).items():
            found.setdefault(key, ConfigValue(value=value, source="default"))
    return dict(sorted(found.items()))


def parse_set(items: Iterable[str]) -> dict[str, ConfigValue]:
    """Values of `--set KEY=VALUE` options. Raises ConfigError for an unknown key or value.

    KEY is a Megatron-Core field, a Bridge path (`model.x`), a flag (`--x-y`), an environment
    variable or a short name (ep, tp, pp, cp, vpp, etp, mbs, gbs, seq, gpu, dispatcher, topk).
    """
    raw: dict[str, Any] = {}
    for item in items:
        key, separator, value = item.partition("=")
        key = key.strip()
        if not separator or not key:
            raise ConfigError(f"--set {item}: write KEY=VALUE")
        name = _key_of(key)
        if name is None:
            near = difflib.get_close_matches(
                key.lower(), [*known(), *OTHER_KEYS, *_SHORT, *_OLD_SWITCHES], n=1
            )
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigError(f"--set {item}: unknown key {key!r}{hint}")
        if name == "moe_token_dispatcher_type" and value in _FLEX_BACKENDS:
            raw |= {name: "flex", "moe_flex_dispatcher_backend": value}
        else:
            raw[name] = value
        row = known().get(name)
        typed = _typed(name, raw[name])
        if row and row.values and isinstance(typed, str) and typed not in row.values:
            raise ConfigError(f"--set {item}: {name} is one of {', '.join(row.values)}")
        kind = row.kind if row else OTHER_KEYS.get(name)
        if kind in ("int", "float") and typed is not None and not isinstance(typed, int | float):
            raise ConfigError(f"--set {item}: {name} is a number")
    return {
        key: ConfigValue(value=value, source="command-line")
        for key, value in sorted(normalise(raw).items())
    }


def normalise(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Values of any release under today's names, typed; keys off the closed list are dropped."""
    named: dict[str, Any] = {}
    for key, value in raw.items():
        name = _key_of(key)
        if name is not None:
            typed = _typed(name, value)
            if _is_of_kind(name, typed):
                named[name] = typed
    old = {key: named.pop(key) for key in _OLD_SWITCHES if key in named}
    _translate_graphs(named, old)
    _translate_dispatch(named, old)
    _translate_rest(named, old)
    return {key: value for key, value in sorted(named.items()) if _keep(value)}


def _is_of_kind(name: str, value: Any) -> bool:
    """Whether a value can be this setting's; `$((2*PP))` for a number is none, but unknown."""
    row = known().get(name)
    kind = row.kind if row else OTHER_KEYS.get(name)
    if value is None or kind not in ("int", "float", "bool"):
        return True
    return isinstance(value, bool if kind == "bool" else int | float)


def _translate_graphs(named: dict[str, Any], old: Mapping[str, Any]) -> None:
    impl = named.get("cuda_graph_impl")
    if impl in (None, "none"):
        if old.get("enable_cuda_graph"):
            impl = "local"
        elif old.get("external_cuda_graph"):
            impl = "transformer_engine"
    modules = named.get("cuda_graph_modules")
    scope = list_of(old.get("cuda_graph_scope"))
    if scope and not modules:
        modules = scope
    if modules is not None:
        modules = [str(item) for item in list_of(modules) or []]
        if "full_iteration" in modules:
            impl = "full_iteration"
        modules = [m for m in modules if m not in ("full", "full_iteration")]
        modules = [m for m in modules if m != "full_iteration_inference"]
        named["cuda_graph_modules"] = modules
    if impl is not None:
        named["cuda_graph_impl"] = impl


def _translate_dispatch(named: dict[str, Any], old: Mapping[str, Any]) -> None:
    if old.get("moe_enable_deepep"):
        named["moe_flex_dispatcher_backend"] = "deepep"
    if named.get("moe_flex_dispatcher_num_sms") is None:
        backend = named.get("moe_flex_dispatcher_backend")
        sms = old.get("moe_hybridep_num_sms" if backend == "hybridep" else "moe_deepep_num_sms")
        if sms is not None and named.get("moe_token_dispatcher_type") == "flex":
            named["moe_flex_dispatcher_num_sms"] = sms


def _translate_rest(named: dict[str, Any], old: Mapping[str, Any]) -> None:
    if old.get("moe_layer_recompute"):
        named["recompute_granularity"] = "selective"
        modules = named.get("recompute_modules") or []
        named["recompute_modules"] = sorted({*modules, "moe"})
    if old.get("recompute_activations") and not named.get("recompute_granularity"):
        named["recompute_granularity"] = "selective"
    if old.get("moe_router_padding_for_fp8"):
        named["moe_router_padding_for_quantization"] = True
    nan = old.get("check_for_nan_in_loss_and_grad")
    if nan is not None:
        named.setdefault("check_for_nan_in_loss", nan)
        named.setdefault("check_for_nan_in_grad", nan)
    if old.get("no_overlap_p2p_communication"):
        named["overlap_p2p_comm"] = False
    layers, stages = named.get("num_layers"), named.get("pipeline_model_parallel_size")
    per_stage = old.get("num_layers_per_virtual_pipeline_stage")
    if per_stage and layers and stages:
        named.setdefault("virtual_pipeline_model_parallel_size", None)
        named["virtual_pipeline_model_parallel_size"] = layers // stages // per_stage
    layout = named.get("pipeline_model_parallel_layout")
    if isinstance(layout, str) and stages:
        virtual = _layout_stages(layout) // stages
        if named.get("virtual_pipeline_model_parallel_size") is None:
            named["virtual_pipeline_model_parallel_size"] = virtual
    if named.get("virtual_pipeline_model_parallel_size") == 1:
        named["virtual_pipeline_model_parallel_size"] = None  # as the framework itself does


def _layout_stages(layout: str) -> int:
    """Number of stages of a pipeline layout such as `Et*3|(tt|)*29m|L`."""
    repeat = re.compile(r"\(([^()]*)\)\*(\d+)")
    text = layout[:4096]
    for _ in range(4):
        text, count = repeat.subn(lambda match: match[1] * min(int(match[2]), 512), text)
        if not count or len(text) > 2**16:
            break
    return text.count("|") + 1


def _text(path_or_text: Path | str) -> tuple[str, str]:
    if isinstance(path_or_text, str) and (
        "\n" in path_or_text or " --" in path_or_text or path_or_text.startswith("--")
    ):
        return path_or_text, "the given text"
    path = Path(path_or_text)
    try:
        if path.is_dir():
            raise ConfigError(f"{path}: a folder; give the configuration file in it")
        return bounded.read_text(path, MAX_BYTES, errors="replace"), str(path)
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from None


def _argument_dump(text: str) -> dict[str, Any]:
    """The last complete dump: a log of restarts holds several."""
    raw: dict[str, Any] = {}
    inside = False
    for line in text.splitlines():
        if _DUMP_START.search(line):
            inside, raw = True, {}
        elif _DUMP_END.search(line):
            inside = False
        elif inside:
            match = _DUMP_LINE.search(line[:4096])
            if match:
                raw[match[1]] = match[2].strip()
    return raw


def _bridge_block(text: str) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    section = ""
    for line in text[text.rindex(_BLOCK_TITLE) :].splitlines()[1:]:
        head = _BLOCK_SECTION.search(line)
        if head:
            section = head[1]
            continue
        match = _BLOCK_LINE.match(line[:4096])
        if section in SECTIONS and match:
            put(raw, section, match[1], match[2])
    return raw


def _yaml_mapping(text: str, where: str) -> dict[str, Any] | None:
    """The text as a YAML mapping, or None where it is something else."""
    if len(text) > MAX_YAML_BYTES or not re.search(r"(?m)^[A-Za-z_][\w.]*:(?:\s|$)", text):
        return None
    if re.search(r"(?m)^\s*(?:#!|export |torchrun|python|srun)", text):
        return None
    import yaml

    base = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    loader = type("_DataLoader", (base,), {})

    def as_data(self: Any, _suffix: str, node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return self.construct_mapping(node)
        if isinstance(node, yaml.SequenceNode):
            return self.construct_sequence(node)
        return self.construct_scalar(node)

    loader.add_multi_constructor("", as_data)  # type: ignore[attr-defined]
    try:
        document = yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader, tags are data
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"{where}:{line}: not YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError):
        raise ConfigError(f"{where}: not YAML that can be read safely") from None
    return document if isinstance(document, dict) else None


def _is_bridge(document: Mapping[str, Any]) -> bool:
    return any(isinstance(document.get(name), Mapping) for name in SECTIONS)


def _bridge_yaml(document: Mapping[str, Any], where: str) -> dict[str, Any]:
    raw: dict[str, Any] = {}
    budget = [MAX_NODES]
    if not _is_bridge(document):
        for key, value in document.items():
            _walk(raw, "", str(key), value, budget, where, 0)
        return raw
    for section in SECTIONS:
        content = document.get(section)
        if section == "mixed_precision" and isinstance(content, str):
            raw |= precision(content)
        elif isinstance(content, Mapping):
            for key, value in content.items():
                _walk(raw, section, str(key), value, budget, where, 0)
    return raw


def _walk(
    raw: dict[str, Any],
    section: str,
    key: str,
    value: Any,
    budget: list[int],
    where: str,
    depth: int,
) -> None:
    budget[0] -= 1
    if budget[0] < 0:
        raise ConfigError(f"{where}: more than {MAX_NODES} values; not a run configuration")
    plain = _instantiated(value)
    if isinstance(plain, Mapping):
        if depth < MAX_DEPTH and key in ("transformer", "language_model", "model_parallel"):
            for name, item in plain.items():
                _walk(raw, section, str(name), item, budget, where, depth + 1)
        return
    if isinstance(plain, list):
        budget[0] -= len(plain)
        plain = [_instantiated(item) for item in plain[:64]]
    put(raw, section, key, plain)


def _instantiated(value: Any) -> Any:
    """A `_target_` mapping as the plain value it stands for; nothing is looked up or called."""
    if not isinstance(value, Mapping) or "_target_" not in value:
        return value
    if value.get("_name_") is not None:
        return str(value["_name_"])
    if value.get("_call_") is False:
        return str(value["_target_"]).rpartition(".")[2]
    arguments = value.get("_args_")
    if isinstance(arguments, list) and len(arguments) == 1 and isinstance(arguments[0], str):
        return arguments[0]
    return value


def _key_of(name: str) -> str | None:
    """Field name of a key in any spelling, or None off the closed list."""
    key = name.strip()
    if key in environment_names():
        return key
    key = key.rpartition(".")[2].lstrip("-").replace("-", "_")
    lowered = key.lower()
    if lowered in known() or lowered in OTHER_KEYS or lowered in _OLD_SWITCHES:
        return lowered
    if key in known():
        return key
    return _dump_names().get(lowered) or _SHORT.get(lowered)


def _dump_names() -> Mapping[str, str]:
    names = {row.dump: row.name for row in known().values() if row.dump}
    return {name: key for name, key in names.items() if name not in _OLD_SWITCHES}


def _typed(name: str, value: Any) -> Any:
    row: KnownKey | None = known().get(name)
    kind = row.kind if row else OTHER_KEYS.get(name, "")
    if name in environment_names():
        return None if value is None else str(value)[:MAX_TEXT]
    if isinstance(value, str) and value.strip().lower() == "none" and row:
        value = "none" if "none" in row.values else None
    if isinstance(value, str):
        value = literal(value.strip(), kind)
    if kind == "list":
        return list_of(value)
    if kind == "bool" and isinstance(value, int):
        return bool(value)
    if kind == "str" and isinstance(value, str):
        match = ENUM.match(value)
        return match[1] if match and ((row and row.values) or value.startswith("<")) else value
    if kind == "str" and isinstance(value, list):
        return value[0] if len(value) == 1 else [str(item) for item in value]
    return value


def _keep(value: Any) -> bool:
    """Values of the kinds that settings have; anything else would only leak."""
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list):
        return all(isinstance(item, str | int | float) and len(str(item)) < 80 for item in value)
    return value is None or isinstance(value, bool | int | float)


def _defaults(framework: str, raw: Mapping[str, Any]) -> dict[str, Any]:
    """The framework's defaults, for a form that shows every value that differs from them."""
    found = {}
    for key in known().values():
        if framework == "megatron-bridge" and not (key.bridge or "").startswith(
            ("model.", "ddp.", "optimizer.", "comm_overlap.")
        ):
            continue
        if key.name in _SHAPE:
            continue
        if framework == "megatron-lm" and key.flag is None and key.off is None:
            continue
        found[key.name] = key.default
    # A value that the text sets from a variable it does not define is unknown, not the default.
    return {key: value for key, value in found.items() if key not in raw}
