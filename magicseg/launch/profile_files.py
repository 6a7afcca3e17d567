"""Load profiles: shipped files, custom files, and overrides from the command line."""

import os
import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from magicseg.core.documents import parse_yaml, read_bytes
from magicseg.core.errors import ConfigError
from magicseg.core.overrides import lay_over_options
from magicseg.core.setting_errors import first_fault, nearest
from magicseg.launch.profile import ContainerSettings, Profile, shown_input

_OVERRIDE = "slurm."
_MOST_BYTES = 1 << 20  # of a profile
_HINT = "quote values with ': ' or ' #' in them"
_ENVIRONMENT_HINT = (
    "remove it from the profile, export it in your shell, and name it: pass_environment: [NAME]   "
    "# or leave that at `all`"
)


def _shipped() -> Traversable:
    return files("magicseg") / "slurm" / "profiles"


def profile_names() -> list[str]:
    """Return the names of the shipped profiles."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _shipped().iterdir() if entry.name.endswith(".yaml"))


def profile_text(name: str) -> str:
    """Return the text of a shipped profile. Raises ConfigError if there is no profile of this name."""
    if name not in profile_names():
        raise ConfigError(
            f"there is no profile {name!r}",
            hint=f"profiles: {', '.join(profile_names())}; or the path of a file, PATH.yaml",
        )
    return (_shipped() / f"{name}.yaml").read_text(encoding="utf-8")


def load_profile(reference: str, overrides: Sequence[str] = ()) -> Profile:
    """Load a shipped profile by name, or a file by path, with ``slurm.KEY=VALUE`` overrides.

    Raises ConfigError, naming the file and the key, if the profile is invalid.
    """
    if re.fullmatch(r"[\w-]+", reference):
        text = profile_text(reference)
    else:
        hint = f"profiles: {', '.join(profile_names())}; or the path of a file, PATH.yaml"
        try:
            data = read_bytes(Path(os.path.expanduser(reference)), limit=_MOST_BYTES, error=ConfigError, hint=hint)
            text = data.decode("utf-8-sig")
        except (FileNotFoundError, UnicodeDecodeError) as error:
            raise ConfigError(f"{reference}: is not a profile that can be read: {error}", hint=hint) from None
    values = _parse(text, reference)
    if not isinstance(values, dict):
        raise ConfigError(f"{reference}: holds {type(values).__name__}, not a mapping of settings")
    lay_over_options(
        values,
        overrides,
        form="slurm.KEY=VALUE",
        example="slurm.partition=low",
        hint=_HINT,
        prefix=_OVERRIDE,
        numbers=False,
    )
    return validate_profile(values, reference)


def validate_profile(data: Mapping[str, Any], source: str) -> Profile:
    """Return data as a `Profile`. Raises ConfigError, naming the first invalid key, if they do not fit."""
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise _explain(error, source) from None


def _parse(text: str, source: str) -> Any:
    """Parse YAML without converting numbers: an account may be called 0123. The settings convert them later."""
    return parse_yaml(text, source=source, hint=_HINT, numbers=False)


def _explain(error: ValidationError, source: str) -> ConfigError:
    first = first_fault(error)
    if first.is_unknown_key:
        known = ContainerSettings.model_fields if first.key.startswith("container.") else Profile.model_fields
        near = nearest(first.key.rsplit(".", 1)[-1], known)
        hint = f"did you mean {near}?" if near else f"known: {', '.join(known)}"
        return ConfigError(f"{source}: {first.key} is not a key of a profile", hint=hint)
    hint = _ENVIRONMENT_HINT if "pass_environment" in first.message else "docs/cluster.md lists a profile's keys"
    return ConfigError(f"{source}: {first}{shown_input(first)}", hint=hint)
