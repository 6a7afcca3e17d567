"""Fingerprints: a hash of everything that decides a stage's bytes, and the names of what changed."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from magicseg.config.model import encoder_weights
from magicseg.config.run import Config
from magicseg.config.stage_declarations import DECLARATIONS, STAGES, StageDeclaration
from magicseg.core.digests import json_sha256
from magicseg.core.dotted_keys import flattened
from magicseg.core.settings import Settings
from magicseg.installed_backends import NestedBackend, backends_in, with_nested
from magicseg.weights import Weights
from magicseg.weights.hashing import path_identity
from magicseg.weights.manifest import Manifest

WEIGHTED = (*STAGES, "train")  # may need pretrained weights


@dataclass(frozen=True)
class Fingerprint:
    """A stage's fingerprint and the values it was made of, by dotted key."""

    digest: str
    inputs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Fingerprint":
        """Hash the inputs."""
        return cls(json_sha256(inputs), dict(inputs))


@dataclass(frozen=True)
class _Group:
    """A group of a stage's settings that chooses back ends: its options, or one of the declaration's checks."""

    key: str  # "generate.options", "generate.validity"
    identity_key: str  # "generate.backend", "generate.validity.backend"
    settings: Settings
    backends: tuple[NestedBackend, ...]
    recipe: int | None = None

    def inputs(self) -> dict[str, Any]:
        """Return the settings that decide bytes, and the identities of the back ends."""
        left_out = [f"{name}." for name in self.settings.not_in_fingerprint]
        left_out += [f"{each.key(name)}." for each in self.backends for name in each.options.not_in_fingerprint]
        values = flattened(self.settings.model_dump(mode="json"))
        found = {
            f"{self.key}.{key}": value
            for key, value in values.items()
            if not f"{key}.".startswith(tuple(left_out))  # it may be a whole group
        }
        if self.recipe is not None:
            found[f"{self.key}.recipe"] = self.recipe
        for each in self.backends:
            found |= {f"{self.identity_key}.{key}": value for key, value in each.identity().items()}
        return found

    def weights(self) -> Iterator[Weights]:
        """Yield the weights of all back ends; ``setting`` is the whole dotted key."""
        for each in self.backends:
            yield from (replace(item, setting=f"{self.key}.{item.setting}") for item in each.weights())


def _groups(config: Config, stage: StageDeclaration) -> list[_Group]:
    backend, options = stage.backend(config)
    groups = [_Group(f"{stage.name}.options", f"{stage.name}.backend", options, with_nested(backend, options))]
    for name, recipe in stage.checks.items():
        key, settings = f"{stage.name}.{name}", getattr(stage.settings(config), name)
        if settings is not None:
            groups.append(_Group(key, f"{key}.backend", settings, tuple(backends_in(settings)), recipe))
    return groups


def stage_weights(config: Config, stage: str) -> tuple[Weights, ...]:
    """Return the pretrained weights that a stage of `WEIGHTED` needs.

    ``setting`` is the whole dotted key: ``generate.options.model``. Raises BackendError, ConfigError.
    """
    if stage == "train":
        return encoder_weights(config.train, prefix="train.")
    return tuple(weights for group in _groups(config, DECLARATIONS[stage]) for weights in group.weights())


def stage_fingerprints(config: Config, plan_fingerprint: str, manifest: Manifest) -> dict[str, Fingerprint]:
    """Return the fingerprint of every stage. Each includes the fingerprint of the stage before it.

    Args: manifest: lists the fetched files of weights by name. Nothing can be committed before they are fetched.
    """
    result: dict[str, Fingerprint] = {}
    upstream = plan_fingerprint
    for name, stage in DECLARATIONS.items():
        settings, groups = stage.settings(config), _groups(config, stage)
        inputs: dict[str, Any] = {"upstream": upstream, f"{name}.recipe": stage.recipe}
        common = settings.model_dump(mode="json", exclude={"options", *stage.checks, *settings.NEUTRAL})
        inputs |= {f"{name}.{key}": value for key, value in common.items()}
        for group in groups:
            inputs |= group.inputs()
        inputs |= stage.further_inputs(config)
        for each in (weights for group in groups for weights in group.weights()):
            where = f"{name}.weights.{each.setting.removeprefix(f'{name}.').removeprefix('options.')}"
            for key in (each.setting, f"{each.setting.rpartition('.')[0]}.revision"):
                inputs.pop(key, None)  # a path may change; the content counts
            inputs[where] = each.name if each.by_name else path_identity(each, each.setting)
            digest = manifest.digest_of(each) if each.by_name else None
            if digest is not None:
                inputs[f"{where}.files"] = digest
        result[name] = Fingerprint.of(inputs)
        upstream = result[name].digest
    return result


def resolve_backends(config: Config) -> Config:
    """Check every stage's back end and write out the defaults of its options.

    Raises BackendError for an unknown back end, ConfigError for options it does not take.
    """
    data = config.model_dump(mode="json")
    for name, stage in DECLARATIONS.items():
        _, options = stage.backend(config)
        data[name]["options"] = options.model_dump(mode="json")
    return Config.model_validate(data)


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """One phrase per key that differs: ``generate.size is 96, was 64``."""
    phrases = []
    for key in sorted(set(before) | set(now)):
        old, new = before.get(key), now.get(key)
        if old != new:
            phrases.append(f"{key} is {_short(new)}, was {_short(old)}")
    return phrases


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 and value is not None else text
