"""Fingerprints: a hash of everything that decides a stage's bytes, and the names of what changed."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from magicseg.backends import Backend, find_backend, weights_of
from magicseg.config import Config, StageSettings
from magicseg.errors import BackendError, ConfigError
from magicseg.run.files import to_json
from magicseg.settings import Settings
from magicseg.weights import Weights
from magicseg.weights.digest import path_identity
from magicseg.weights.manifest import Manifest

STAGES = ("describe", "generate", "mask")
BACKEND_KINDS = {"describe": "captioners", "generate": "generators", "mask": "maskers"}
# Raise a stage's number when its code changes the bytes that it writes.
RECIPES = {"describe": 1, "generate": 1, "mask": 1}


@dataclass(frozen=True)
class Fingerprint:
    """A stage's fingerprint and the values it was made of, by dotted key."""

    digest: str
    inputs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Mapping[str, Any]) -> "Fingerprint":
        """Hash the inputs."""
        return cls(hashlib.sha256(to_json(inputs)).hexdigest(), dict(inputs))


def stage_settings(config: Config, stage: str) -> StageSettings:
    """The settings of an array stage."""
    settings: StageSettings = getattr(config, stage)
    return settings


def chosen_backend(settings: StageSettings, stage: str) -> tuple[type[Backend], Settings]:
    """The class of a stage's back end, and its options, validated.

    Raises: BackendError for an unknown back end, ConfigError for options it does not take.
    """
    backend = _installed_backend(stage, settings.backend)
    try:
        return backend, backend.Options.model_validate(settings.options)
    except ValidationError as error:
        # Not pydantic's own text: it quotes the values, and one may be a key in the wrong place.
        faults = [
            ": ".join(filter(None, [".".join(map(str, item["loc"])), item["msg"].removeprefix("Value error, ")]))
            for item in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        raise ConfigError(
            f"{stage}.options does not fit back end {settings.backend!r}: {'; '.join(faults)}",
            hint=f"its options: {', '.join(backend.Options.model_fields) or 'none'}",
        ) from None


def stage_weights(config: Config, stage: str) -> tuple[Weights, ...]:
    """The pretrained weights that a stage needs. Raises: BackendError, ConfigError."""
    return weights_of(*chosen_backend(stage_settings(config, stage), stage))


def stage_fingerprints(config: Config, plan_fingerprint: str, manifest: Manifest) -> dict[str, Fingerprint]:
    """The fingerprint of every stage under ``config``, each resting on the one before.

    Args: manifest: says what was fetched of weights by name. Nothing can be committed before they are.
    """
    result: dict[str, Fingerprint] = {}
    upstream = plan_fingerprint
    for stage in STAGES:
        settings = stage_settings(config, stage)
        backend, options = chosen_backend(settings, stage)
        inputs: dict[str, Any] = {"upstream": upstream, f"{stage}.recipe": RECIPES[stage]}
        for key, value in settings.model_dump(mode="json", exclude={"options"}).items():
            inputs[f"{stage}.{key}"] = value
        weights = weights_of(backend, options)
        for key, value in _deciding(settings.options, options, weights).items():
            inputs[f"{stage}.options.{key}"] = value
        for key, value in backend.identity(options).items():
            inputs[f"{stage}.backend.{key}"] = value
        for each in weights:
            where = f"{stage}.options.{each.setting}"
            inputs[f"{stage}.weights.{each.setting}"] = each.name if each.by_name else path_identity(each, where)
            digest = manifest.digest_of(each) if each.by_name else None
            if digest is not None:
                inputs[f"{stage}.weights.{each.setting}.files"] = digest
        if stage == "generate":
            inputs["store.image_codec"] = config.store.image_codec
            if config.store.image_codec == "jpeg":
                inputs["store.jpeg_quality"] = config.store.jpeg_quality
        result[stage] = Fingerprint.of(inputs)
        upstream = result[stage].digest
    return result


def _deciding(chosen: Mapping[str, Any], options: Settings, weights: Sequence[Weights]) -> dict[str, Any]:
    """The options that decide bytes: without neutral ones, and those that say where weights lie."""
    neutral = set(options.NEUTRAL)
    for each in weights:
        group, dot, _ = each.setting.rpartition(".")
        neutral |= {each.setting, f"{group}{dot}revision"}

    def without(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: without(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
            for key, value in values.items()
            if prefix + key not in neutral
        }

    return without(chosen, "")


def resolve_backends(config: Config) -> Config:
    """Check every stage's back end and write the defaults of its options out.

    Raises: BackendError for an unknown back end, ConfigError for options it does not take.
    """
    data = config.model_dump(mode="json")
    for stage in STAGES:
        _, options = chosen_backend(stage_settings(config, stage), stage)
        data[stage]["options"] = options.model_dump(mode="json")
    return Config.model_validate(data)


def _installed_backend(stage: str, name: str) -> type[Backend]:
    """`find_backend`, with an error that names the setting."""
    try:
        return find_backend(BACKEND_KINDS[stage], name)
    except BackendError as error:
        raise BackendError(
            f"{stage}.backend: {error.message}", hint=f"{error.hint}; another one: --set {stage}.backend=NAME"
        ) from error


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
