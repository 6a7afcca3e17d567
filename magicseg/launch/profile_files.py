"""Profiles as files: the shipped ones, one's own, and values over them from the command line."""

import difflib
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from magicseg.errors import ConfigError
from magicseg.launch.profile import ContainerSettings, Profile, key_of

_OVERRIDE = "slurm."


class _Loader(yaml.SafeLoader):
    """Numbers stay text until the settings say what they are: in YAML 1.1, 4:00:00 is the number 14400."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[-1] in {"bool", "null", "merge"}]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _shipped() -> Traversable:
    return files("magicseg") / "slurm" / "profiles"


def profile_names() -> list[str]:
    """The shipped profiles."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def profile_text(name: str) -> str:
    """A shipped profile's file. Raises: ConfigError if there is none of this name."""
    if name not in profile_names():
        raise ConfigError(
            f"there is no profile {name!r}",
            hint=f"profiles: {', '.join(profile_names())}; or the path of a file, PATH.yaml",
        )
    return (_shipped() / f"{name}.yaml").read_text(encoding="utf-8")


def load_profile(reference: str, overrides: Sequence[str] = ()) -> Profile:
    """A shipped profile by its name, or a file by its path, with ``slurm.KEY=VALUE`` overrides.

    Raises: ConfigError naming the file and the key.
    """
    if re.fullmatch(r"[\w-]+", reference):
        text = profile_text(reference)
    else:
        try:
            text = Path(reference).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{reference}: is not a profile that can be read: {error}",
                hint=f"profiles: {', '.join(profile_names())}; or the path of a file, PATH.yaml",
            ) from None
    data = _parse(text, reference)
    if not isinstance(data, dict):
        raise ConfigError(f"{reference}: holds {type(data).__name__}, not a mapping of settings")
    for override in overrides:
        _apply(data, override)
    return validate_profile(data, reference)


def validate_profile(data: Mapping[str, Any], source: str) -> Profile:
    """Check plain data against `Profile`. Raises: ConfigError naming the first offending key."""
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise _explain(error, source) from None


def _parse(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: is not YAML: {error}", hint="quote values with ': ' or ' #' in them") from None


def _apply(data: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    key = key.strip()
    if not separator or not key.startswith(_OVERRIDE) or key == _OVERRIDE:
        raise ConfigError(f"--set {override!r} is not of the form slurm.KEY=VALUE", hint="--set slurm.partition=low")
    node = data
    *groups, name = key.removeprefix(_OVERRIDE).split(".")
    for group in groups:
        child = node.get(group)
        if child is None:
            child = node[group] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"--set {override!r}: {group} is a value, not a group of settings", hint=f"--set slurm.{group}=VALUE"
            )
        node = child
    node[name] = _parse(text, f"--set {override!r}")


def _explain(error: ValidationError, source: str) -> ConfigError:
    first = error.errors(include_url=False)[0]
    key = key_of(first["loc"])
    if first["type"] == "extra_forbidden":
        known = ContainerSettings.model_fields if key.startswith("container.") else Profile.model_fields
        near = difflib.get_close_matches(key.rsplit(".", 1)[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
        return ConfigError(f"{source}: {key} is not a key of a profile", hint=hint)
    message = first["msg"].removeprefix("Value error, ")
    where = f"{source}: {key}" if key else source
    got = f" (got {first['input']!r})" if key else ""
    return ConfigError(f"{where}: {message}{got}", hint="docs/cluster.md lists a profile's keys")
