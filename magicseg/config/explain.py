"""Explain a validation error of pydantic: the key, what is wrong with its value, and the nearest valid key."""

from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from magicseg.config.run import Config
from magicseg.core.errors import ConfigError
from magicseg.core.setting_errors import first_fault, nearest
from magicseg.core.text import printable

_NUMBER = "write a number, without quotes: 16, 0.5 or 1e-5"
_HINTS = {"bool_type": "write true or false", "int_type": _NUMBER, "float_type": _NUMBER, "finite_number": _NUMBER}


def explained(error: ValidationError, source: str) -> ConfigError:
    """Return the error that names a key of `Config`, its fault and what to do. Args: source: where it was read."""
    first = first_fault(error)
    location = _without_tags([part for part in first.location if isinstance(part, str)])
    key = ".".join(location) or "settings"
    if first.is_unknown_key:
        known = _keys_at(Config, location[:-1])
        near = nearest(location[-1], known)
        everywhere = [path for path in _all_keys(Config) if path.rsplit(".", 1)[-1] == location[-1] and path != key]
        if near or everywhere:
            guesses = [".".join([*location[:-1], near])] if near else []
            hint = f"did you mean {' or '.join([*guesses, *everywhere[:2]])}?"
        else:
            hint = f"known here: {', '.join(known)}"
        return ConfigError(f"{source}: {key} is not a setting", hint=hint)
    if first.kind == "missing":
        return ConfigError(f"{source}: {key} is missing", hint="start from a preset: --preset miniature")
    got = printable(repr(first.value), 200)
    return ConfigError(
        f"{source}: {key}: {first.message} (got {got})", hint=_HINTS.get(first.kind, "magicseg schema")
    )


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """Return the groups of settings that a value may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is not None:
        return [model for arg in get_args(annotation) for model in _models_of(arg)]
    return []


def _without_tags(location: Sequence[str]) -> list[str]:
    """Return a key's parts without the names by which pydantic says which of several groups of settings it tried."""
    models: list[type[BaseModel]] = [Config]
    kept: list[str] = []
    for part in location:
        tagged = [each for each in models if part in _names_of(each)]
        if len(models) > 1 and tagged:
            models = tagged
            continue
        kept.append(part)
        fields = [field for each in models if (field := each.model_fields.get(part))]
        models = [inner for field in fields for inner in _models_of(field.annotation)]
    return kept


def _names_of(model: type[BaseModel]) -> tuple[Any, ...]:
    """Return the names by which one of several groups of settings is chosen."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field else ()


def _keys_at(model: type[BaseModel], location: Sequence[str]) -> list[str]:
    models = [model]
    for part in location:
        fields = [field for each in models if (field := each.model_fields.get(part))]
        models = [inner for field in fields for inner in _models_of(field.annotation)]
    return list(dict.fromkeys(name for each in models for name in each.model_fields))


def _all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, field in model.model_fields.items():
        keys.append(prefix + name)
        for inner in _models_of(field.annotation):
            keys += _all_keys(inner, f"{prefix}{name}.")
    return list(dict.fromkeys(keys))
