"""Fingerprints: a hash of everything that decides a stage's bytes, and the names of what changed."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from magicseg.backends import Backend, choices_in, choose_backend, identity_in, weights_in, weights_of
from magicseg.config import finding
from magicseg.config.array_stages import GenerateSettings, StageSettings
from magicseg.config.model import encoder_weights
from magicseg.config.run import Config
from magicseg.core.files import to_json
from magicseg.core.settings import Settings
from magicseg.weights import Weights
from magicseg.weights.hashing import path_identity
from magicseg.weights.manifest import Manifest

STAGES = ("describe", "generate", "mask")
BACKEND_KINDS = {"describe": "captioners", "generate": "generators", "mask": "maskers"}
# The stages that may need pretrained weights.
WEIGHTED = (*STAGES, "train")
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


def stage_weights(config: Config, stage: str) -> tuple[Weights, ...]:
    """The pretrained weights that a stage of `WEIGHTED` needs, ``setting`` being the whole key:
    ``generate.options.model``.

    Raises: BackendError, ConfigError.
    """
    if stage == "train":
        return encoder_weights(config.train, prefix="train.")
    settings = stage_settings(config, stage)
    needed = [(f"{stage}.options", each) for each in weights_of(*chosen_backend(settings, stage))]
    if isinstance(settings, GenerateSettings) and settings.validity is not None:
        needed += [(f"{stage}.validity", each) for each in weights_in(settings.validity)]
    return tuple(replace(each, setting=f"{where}.{each.setting}") for where, each in needed)


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
        for key, value in settings.model_dump(
            mode="json", exclude={"options", "validity", *settings.NEUTRAL}
        ).items():
            inputs[f"{stage}.{key}"] = value
        inputs |= _deciding(options, f"{stage}.options")
        for key, value in {**backend.identity(options), **identity_in(options)}.items():
            inputs[f"{stage}.backend.{key}"] = value
        if isinstance(settings, GenerateSettings):
            if settings.validity is not None:
                inputs |= _deciding(settings.validity, f"{stage}.validity")
                inputs[f"{stage}.validity.recipe"] = finding.RECIPE
                for key, value in identity_in(settings.validity).items():
                    inputs[f"{stage}.validity.backend.{key}"] = value
            inputs["store.image_codec"] = config.store.image_codec
            if config.store.image_codec == "jpeg":
                inputs["store.jpeg_quality"] = config.store.jpeg_quality
        for each in stage_weights(config, stage):
            where = f"{stage}.weights.{each.setting.removeprefix(f'{stage}.').removeprefix('options.')}"
            for name in (each.setting, f"{each.setting.rpartition('.')[0]}.revision"):
                inputs.pop(name, None)  # they may move: what they are counts
            inputs[where] = each.name if each.by_name else path_identity(each, each.setting)
            digest = manifest.digest_of(each) if each.by_name else None
            if digest is not None:
                inputs[f"{where}.files"] = digest
        result[stage] = Fingerprint.of(inputs)
        upstream = result[stage].digest
    return result


def _deciding(options: Settings, where: str) -> dict[str, Any]:
    """The options that decide bytes, by their whole keys: all but neutral ones, those of back ends inside too."""
    neutral = {f"{where}.{key}" for key in options.NEUTRAL}
    for path, choice in choices_in(options):
        neutral |= {f"{where}.{path}.options.{key}" for key in choice.chosen()[1].NEUTRAL}

    def flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            name = f"{prefix}.{key}"
            if name not in neutral:
                found |= flat(value, name) if isinstance(value, Mapping) else {name: value}
        return found

    return flat(options.model_dump(mode="json"), where)


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
