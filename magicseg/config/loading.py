"""Load the configuration of a run: presets, YAML files, ``--set`` options."""

import copy
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from magicseg.config.explain import explained
from magicseg.config.run import Config
from magicseg.core.documents import parse_yaml, read_text
from magicseg.core.dotted_keys import assignments
from magicseg.core.errors import ConfigError
from magicseg.core.overrides import NotAGroup, lay_over, lay_over_options
from magicseg.core.text import printable

_YAML = "write each key once, and quote texts with ': ', ' #', brackets or a leading '!' or '*' in them"


def preset_names() -> list[str]:
    """Return the names of the shipped presets."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("magicseg.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def json_schema() -> str:
    """Return the JSON schema of `Config`."""
    return json.dumps(Config.model_json_schema(), indent=2)


def load_config(*, preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge a preset, a file and ``key.path=value`` overrides, in this order: see `magicseg.core.overrides`.

    Raises ConfigError that names the key, and the nearest valid key for an unknown one.
    """
    written: dict[str, Any] = {}
    if file is not None:
        written = _read(file)
    preset = preset or written.get("preset")
    data: dict[str, Any] = {}
    if preset is not None:
        names = preset_names()
        if preset not in names:
            where = f"{file}: preset: " if file and preset == written.get("preset") else ""
            raise ConfigError(
                f"{where}there is no preset {printable(repr(preset), 200)}", hint=f"presets: {', '.join(names)}"
            )
        text = files("magicseg.presets").joinpath(f"{preset}.yaml").read_text(encoding="utf-8")
        data = _parse(text, f"{preset}.yaml")
        written = written | {"preset": preset}
    source = str(file) if file else "the settings"
    try:
        lay_over(data, assignments(written))
    except NotAGroup as error:
        raise ConfigError(f"{source}: {error} is a value, not a group of settings") from None
    lay_over_options(data, overrides, form="key.path=value", example="plan.samples=256", hint=_YAML)
    return validate_config(data, source=source)


def validate_config(data: Mapping[str, Any], *, source: str) -> Config:
    """Check plain data against `Config`. Raises ConfigError that names the first invalid key."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise explained(error, source) from None


@lru_cache(maxsize=8)
def _parsed(text: str, source: str) -> Any:
    return parse_yaml(text, source=source, hint=_YAML)


def _parse(text: str, source: str) -> Any:
    """Return a copy of the cached plain data: to parse a run's file takes 10 ms, to copy it less."""
    return copy.deepcopy(_parsed(text, source))


def _read(path: Path) -> dict[str, Any]:
    try:
        data = _parse(read_text(path), str(path))
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__}, not a mapping of settings")
    return data


def read_config(path: Path) -> Config:
    """Return the configuration in a run's file, which holds every setting. Raises ConfigError."""
    return validate_config(_read(path), source=str(path))
