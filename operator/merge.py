"""Merges a user's overrides into a pod template: objects by key, named things by name, else replaced."""

from typing import Any

from penstock.errors import ConfigError


def merge(base: Any, override: Any, path: str = "template") -> Any:
    """A new value; neither argument is changed. None in an override removes the key. Raises ConfigError, which names
    `path`, for an override that is of another kind than what it overrides."""
    if isinstance(base, dict | list) and override is not None and not isinstance(override, type(base)):
        raise ConfigError(f"{path} is {str(override)[:40]!r}; it must be {_WORDS[type(base)]}")
    if isinstance(base, dict) and isinstance(override, dict):
        merged = {
            key: merge(value, override[key], f"{path}.{key}") if key in override else value
            for key, value in base.items()
        }
        merged |= {key: value for key, value in override.items() if key not in base}
        return {key: value for key, value in merged.items() if value is not None}
    if isinstance(base, list) and isinstance(override, list) and _key(base) and _key(base) == _key(override):
        return _merge_named(base, override, _key(base), path)
    return override


_WORDS: dict[type, str] = {dict: "an object", list: "a list"}


def _merge_named(base: list[Any], override: list[Any], key: str, path: str) -> list[Any]:
    changes = {item[key]: item for item in override}
    merged = [
        merge(item, changes.pop(item[key]), f"{path}[{item[key]}]") if item[key] in changes else item for item in base
    ]
    return merged + list(changes.values())


def _key(items: list[Any]) -> str:
    """What names the items: mountPath for volume mounts (a volume may be mounted twice), else name; "" for neither."""
    for key in ("mountPath", "name"):
        if items and all(isinstance(item, dict) and isinstance(item.get(key), str) for item in items):
            return key
    return ""
