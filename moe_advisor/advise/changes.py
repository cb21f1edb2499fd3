"""From a setting's name to the spelling of each framework and release."""

from collections.abc import Iterable, Mapping
from typing import Any

from moe_advisor.advise.rule import ChangeSpec
from moe_advisor.keys import KnownKey, OldKey, in_release, known, release
from moe_advisor.result import Change


def spell(
    spec: ChangeSpec, config: Mapping[str, Any], before: Mapping[str, Any], version: object = None
) -> tuple[list[Change], str | None]:
    """The change in the words of each framework, and why it can't be made in this release.

    `config` is the configuration after all changes, `before` the one now. A setting without a
    Megatron-LM flag is spelt for Megatron-Bridge only, and the other way round.
    """
    now = before.get(spec.key)
    if spec.framework in ("env", "pytorch", "job"):
        change = Change(
            framework=spec.framework,
            key=spec.key,
            from_=now if spec.framework == "env" else None,
            to=spec.to,
            since=spec.since,
            until=spec.until,
            note=spec.note,
        )
        return [change], None
    key = known()[spec.key]
    number = release(version)
    since = _since(spec, key)
    old = _old_spelling(key, config, number)
    if in_release(since, key.until, number):
        pairs = {"megatron-bridge": key.bridge, "megatron-lm": _flag(key, spec.to)}
        old_keys = {
            "megatron-bridge": old and _old_path(key, old),
            "megatron-lm": old and (old.flag or None),
        }
        made = [
            Change(
                framework=framework,  # type: ignore[arg-type]
                key=name,
                from_=now,
                to=spec.to,
                since=since,
                until=spec.until or key.until,
                old_key=old_keys[framework] or None,
                note=_note(spec, key, framework),
            )
            for framework, name in pairs.items()
            if name and spec.framework in (None, framework)
        ]
        return made, None
    if old is None:
        releases = [since, *(one.since for one in key.old)]
        later = [text for text in releases if (release(text) or (0, 0)) > (number or (0, 0))]
        earliest = min(later, key=lambda text: release(text) or (0, 0), default=since)
        return [], f"{spec.key} needs Megatron-Core {earliest}"
    value = _old_value(old, spec.to)
    names = {"megatron-bridge": _old_path(key, old), "megatron-lm": old.flag}
    made = [
        Change(
            framework=framework,  # type: ignore[arg-type]
            key=name,
            from_=before.get(old.key, now),
            to=value,
            since=old.since,
            until=old.until,
            note=f"{spec.key} in Megatron-Core {since} and newer",
        )
        for framework, name in names.items()
        if name and spec.framework in (None, framework)
    ]
    return made, None


def apply(config: Mapping[str, Any], specs: Iterable[ChangeSpec]) -> dict[str, Any]:
    """The configuration after the changes, by Megatron-Core field or environment variable."""
    after = dict(config)
    after |= {spec.key: spec.to for spec in specs if spec.framework not in ("pytorch", "job")}
    return after


def _since(spec: ChangeSpec, key: KnownKey) -> str | None:
    wanted = spec.to if isinstance(spec.to, list) else [spec.to]
    by_value = [key.value_since[v] for v in wanted if isinstance(v, str) and v in key.value_since]
    return spec.since or (by_value[0] if by_value else key.since)


def _flag(key: KnownKey, to: Any) -> str | None:
    if key.kind == "bool" and to is False and key.off:
        return key.off
    if key.kind == "bool" and to is True and key.off and not key.flag:
        return key.off
    return key.flag


def _note(spec: ChangeSpec, key: KnownKey, framework: str) -> str | None:
    if framework == "megatron-lm" and key.kind == "bool":
        if spec.to is True and key.off and not key.flag:
            return f"on by default: remove {key.off}"
        if spec.to is False and key.flag and not key.off:
            return "remove the flag"
    return spec.note


def _old_spelling(
    key: KnownKey, config: Mapping[str, Any], version: tuple[int, int] | None
) -> OldKey | None:
    for old in key.old:
        if old.backend and config.get("moe_flex_dispatcher_backend") != old.backend:
            continue
        if old.to and not _maps(old, config.get(key.name)):
            continue
        if version is None or in_release(old.since, old.until, version):
            return old
    return None


def _maps(old: OldKey, value: Any) -> bool:
    if isinstance(value, list):
        return any(item in old.to for item in value)
    return value in old.to


def _old_value(old: OldKey, to: Any) -> Any:
    if not old.to:
        return to
    if isinstance(to, list):
        return next((old.to[item] for item in to if item in old.to), to)
    return old.to.get(to, to)


def _old_path(key: KnownKey, old: OldKey) -> str | None:
    if key.bridge is None:
        return None
    return key.bridge.rpartition(".")[0] + "." + old.key
