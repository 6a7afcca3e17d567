"""The configuration of a run: validated settings, presets, dotted overrides, YAML in and out."""

import copy
import difflib
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, get_args, get_origin

from pydantic import BaseModel, Field, ValidationError, model_validator

from magicseg.core.documents import parse_yaml, read_text, to_yaml
from magicseg.core.layers import Assignment, NotAGroup, assignments, lay_over
from magicseg.core.text import printable
from magicseg.errors import ConfigError
from magicseg.evaluate.settings import EvaluateSettings
from magicseg.generate.settings import ImageQualitySettings, ValiditySettings
from magicseg.settings import Settings
from magicseg.train.settings import TrainSettings

_YAML = "write each key once, and quote texts with ': ', ' #', brackets or a leading '!' or '*' in them"
_NUMBER = "write a number, without quotes: 16, 0.5 or 1e-5"
_HINTS = {"bool_type": "write true or false", "int_type": _NUMBER, "float_type": _NUMBER, "finite_number": _NUMBER}


class LabelSettings(Settings):
    """Which classes the data set is about."""

    vocabulary: str = Field(description="a shipped name, or a path to a .txt or .yaml list")


class PlanSettings(Settings):
    """How many samples, and how they are cut into shards."""

    samples: int = Field(ge=1, le=1_000_000_000)
    shard_size: int = Field(64, ge=1, le=65_536, description="samples in a shard: the unit of work and commit")
    min_labels: int = Field(1, ge=1, le=8, description="least number of different classes in a sample")
    max_labels: int = Field(2, ge=1, le=8, description="greatest number of different classes in a sample")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_labels > self.max_labels:
            raise ValueError(f"min_labels is {self.min_labels}, above max_labels {self.max_labels}")
        return self


class StoreSettings(Settings):
    """How images are kept."""

    image_codec: Literal["lossless", "jpeg"] = "lossless"
    jpeg_quality: int = Field(95, ge=1, le=100)


class StageSettings(Settings):
    """What the array stages share."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"one_reason_at_most"})

    backend: str = Field(description="an installed back end's name")
    batch_size: int = Field(16, ge=1, description="samples in one call of the back end; part of the fingerprint")
    one_reason_at_most: float = Field(
        0.9,
        gt=0,
        le=1,
        description="stop the stage if a larger share of samples is dropped for one reason, or gets a fallback",
    )
    options: dict[str, Any] = Field(default_factory=dict, description="the back end's own settings")


class DescribeSettings(StageSettings):
    """Labels to captions."""


class GenerateSettings(StageSettings):
    """Captions to pairs of images."""

    size: int = Field(512, ge=8, le=8192, description="height and width of the images in pixels")
    quality: ImageQualitySettings = ImageQualitySettings()
    validity: ValiditySettings | None = Field(None, description="a detector checks both images of every pair")


class MaskSettings(StageSettings):
    """Pairs of images to class maps."""


class SlurmSettings(Settings):
    """Where the run is submitted to; changes no byte of it."""

    profile: str | None = Field(None, description="a shipped profile's name, or a path to a .yaml file")


class Config(Settings):
    """One run's whole configuration."""

    preset: str | None = Field(None, description="the preset that this configuration began with")
    seed: int = Field(0, ge=0, lt=2**63)
    labels: LabelSettings
    plan: PlanSettings
    store: StoreSettings = StoreSettings()
    describe: DescribeSettings
    generate: GenerateSettings
    mask: MaskSettings
    train: TrainSettings = TrainSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    slurm: SlurmSettings = SlurmSettings()

    def to_yaml(self) -> str:
        """The configuration with every default written out."""
        return to_yaml(self.model_dump(mode="json"))


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
    """Merge a preset, a file and ``key.path=value`` overrides, in this order: see `magicseg.core.layers`.

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
        raise _explain(error, source) from None


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


def _explain(error: ValidationError, source: str) -> ConfigError:
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
