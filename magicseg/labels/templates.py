"""Prompt templates: sentences with one placeholder for a class name."""

from importlib.resources import files

import yaml

from magicseg.core.errors import ConfigError


def load_templates(name: str) -> tuple[str, ...]:
    """Return the templates of a shipped set ("photo", "ensemble"). Each contains one ``{}`` for the class name.

    Raises: ConfigError for an unknown set.
    """
    text = (files("magicseg.labels") / "data" / "templates.yaml").read_text(encoding="utf-8")
    sets: dict[str, list[str]] = yaml.safe_load(text)
    if name not in sets:
        raise ConfigError(f"there is no set of templates {name!r}", hint=f"shipped: {', '.join(sorted(sets))}")
    return tuple(sets[name])
