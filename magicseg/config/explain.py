"""Explain a validation error of pydantic: the key, what is wrong with its value, and the nearest valid key."""

import difflib
from collections.abc import Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from magicseg.config.run import Config
from magicseg.core.errors import ConfigError
from magicseg.core.text import printable

_NUMBER = "write a number, without quotes: 16, 0.5 or 1e-5"
_HINTS = {"bool_type": "write true or false", "int_type": _NUMBER, "float_type": _NUMBER, "finite_number": _NUMBER}


def explained(error: ValidationError, source: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    location = _without_tags([part for part in first["loc"] if isinstance(part, str)])
    key = ".".join(location) or "settings"
    if first["type"] == "extra_forbidden":
        known = _keys_at(Config, location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        everywhere = [path for path in _all_keys(Config) if path.rsplit(".", 1)[-1] == location[-1] and path != key]
        prefix = ".".join(location[:-1])
        if near or everywhere:
            guesses = [f"{prefix}.{near[0]}".removeprefix(".")] if near else []
            hint = f"did you mean {' or '.join([*guesses, *everywhere[:2]])}?"
        else:
            hint = f"known here: {', '.join(known)}"
        return ConfigError(f"{source}: {key} is not a setting", hint=hint)
    if first["type"] == "missing":
        return ConfigError(f"{source}: {key} is missing", hint="start from a preset: --preset miniature")
    message = first["msg"].removeprefix("Value error, ")
    got = printable(repr(first["input"]), 200)
    return ConfigError(f"{source}: {key}: {message} (got {got})", hint=_HINTS.get(first["type"], "magicseg schema"))


def _models_of(annotation: Any) -> list[type[BaseModel]]:
    """The groups of settings that a value may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) is not None:
        return [model for arg in get_args(annotation) for model in _models_of(arg)]
    return []


def _without_tags(location: Sequence[str]) -> list[str]:
    """A key's parts without those by which pydantic says which of several groups of settings it took."""
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
    """The names by which one of several groups of settings is chosen."""
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
