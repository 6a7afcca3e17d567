"""Fingerprints: a hash of everything that decides a stage's bytes, and the names of what changed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from magicseg.backends import Backend, choose_backend
from magicseg.config import Config, GenerateSettings, StageSettings
from magicseg.run.files import to_json
from magicseg.settings import Settings

STAGES = ("describe", "generate", "mask")
BACKEND_KINDS = {"describe": "captioners", "generate": "generators", "mask": "maskers"}
# Raise a stage's number when its code changes the bytes that it writes.
RECIPES = {"describe": 1, "generate": 2, "mask": 1}


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
    return choose_backend(BACKEND_KINDS[stage], settings.backend, settings.options, stage)


def stage_fingerprints(config: Config, plan_fingerprint: str) -> dict[str, Fingerprint]:
    """The fingerprint of every stage under ``config``, each resting on the one before."""
    result: dict[str, Fingerprint] = {}
    upstream = plan_fingerprint
    for stage in STAGES:
        settings = stage_settings(config, stage)
        backend, options = chosen_backend(settings, stage)
        inputs: dict[str, Any] = {"upstream": upstream, f"{stage}.recipe": RECIPES[stage]}
        for key, value in settings.model_dump(mode="json", exclude={"options", "validity"}).items():
            inputs[f"{stage}.{key}"] = value
        for key, value in settings.options.items():
            if key not in options.NEUTRAL:
                inputs[f"{stage}.options.{key}"] = value
        for key, value in backend.identity(options).items():
            inputs[f"{stage}.backend.{key}"] = value
        if isinstance(settings, GenerateSettings):
            if settings.validity is not None:
                inputs |= {f"generate.validity.{key}": value for key, value in settings.validity.identity().items()}
            inputs["store.image_codec"] = config.store.image_codec
            if config.store.image_codec == "jpeg":
                inputs["store.jpeg_quality"] = config.store.jpeg_quality
        result[stage] = Fingerprint.of(inputs)
        upstream = result[stage].digest
    return result


def resolve_backends(config: Config) -> Config:
    """Check every stage's back end and write the defaults of its options out.

    Raises: BackendError for an unknown back end, ConfigError for options it does not take.
    """
    data = config.model_dump(mode="json")
    for stage in STAGES:
        _, options = chosen_backend(stage_settings(config, stage), stage)
        data[stage]["options"] = options.model_dump(mode="json")
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
