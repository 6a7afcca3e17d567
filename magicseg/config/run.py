"""The configuration of a run: all groups of settings in one object."""

from typing import Literal, Self

from pydantic import Field, model_validator

from magicseg.config.evaluation import OWN_MASKS, EvaluateSettings
from magicseg.config.stage_settings import DescribeSettings, GenerateSettings, MaskSettings
from magicseg.config.training import TrainSettings
from magicseg.core.documents import to_yaml
from magicseg.core.settings import Settings


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

    @model_validator(mode="after")
    def _holds_out_what_it_scores(self) -> Self:
        held_out = self.train.held_out
        if OWN_MASKS in self.evaluate.benchmarks and not held_out:
            raise ValueError(f"evaluate.benchmarks names {OWN_MASKS}, which needs train.held_out, and that is 0")
        if held_out >= self.plan.samples:
            raise ValueError(f"train.held_out is {held_out}: none of the {self.plan.samples} plan.samples is left")
        return self

    def to_yaml(self) -> str:
        """The configuration with every default written out."""
        return to_yaml(self.model_dump(mode="json"))
