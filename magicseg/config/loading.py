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
from magicseg.core.errors import ConfigError
from magicseg.core.overrides import Assignment, NotAGroup, assignments, lay_over
from magicseg.core.text import printable

_YAML = "write each key once, and quote texts with ': ', ' #', brackets or a leading '!' or '*' in them"


def preset_names() -> list[str]:
    """The shipped presets."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in files("magicseg.presets").iterdir()
        if entry.name.endswith(".yaml")
    )


def json_schema() -> str:
    """The JSON schema of `Config`."""
    return json.dumps(Config.model_json_schema(), indent=2)


def load_config(*, preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Merge a preset, a file and ``key.path=value`` overrides, in this order: see `magicseg.core.overrides`.

    Raises: ConfigError naming the key, with the nearest valid one for an unknown key.
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
    _apply_overrides(data, overrides)
    return validate_config(data, source=source)


def validate_config(data: Mapping[str, Any], *, source: str) -> Config:
    """Check plain data against `Config`. Raises: ConfigError naming the first offending key."""
    try:
        return Config.model_validate(data)
    except ValidationError as error:
        raise explained(error, source) from None


@lru_cache(maxsize=8)
def _parsed(text: str, source: str) -> Any:
    return parse_yaml(text, source=source, hint=_YAML)


def _parse(text: str, source: str) -> Any:
    """Plain data of the caller's own. A run's file is opened often and takes 10 ms, a copy of what was in it less."""
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
    """A run's own, complete configuration file."""
    return validate_config(_read(path), source=str(path))


def _apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> None:
    layer: list[Assignment] = []
    texts: dict[tuple[Any, ...], str] = {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(
                f"--set {printable(override, 200)!r} is not of the form key.path=value", hint="--set plan.samples=256"
            )
        shown = f"--set {printable(override, 200)!r}"
        value = parse_yaml(text, source=shown, hint=_YAML)
        for assignment in assignments(value, tuple(key.strip().split("."))):
            layer.append(assignment)
            texts[assignment[0]] = shown
    try:
        lay_over(data, layer)
    except NotAGroup as error:
        shown = next(text for path, text in texts.items() if ".".join(map(str, path)).startswith(f"{error}."))
        raise ConfigError(f"{shown}: {error} is a value, not a group of settings") from None
