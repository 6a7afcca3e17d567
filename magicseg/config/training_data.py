"""Settings of the training data: sources, sampling order, augmentation, reading."""

from typing import Any, ClassVar, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from magicseg.config.evaluation import is_protocol_file
from magicseg.core.paths import absolute
from magicseg.core.settings import Settings
from magicseg.labels import is_label_file

SELF = "self"


class SourceSettings(Settings):
    """One of the data sets that training mixes: a run, a folder in the layout of PASCAL VOC or COCO, or a benchmark's
    data.
    """

    run: str | None = Field(None, description="a run's path; self: the run that trains")
    voc: str | None = Field(None, description="a folder with JPEGImages, SegmentationClass and ImageSets")
    coco: str | None = Field(None, description="a folder with annotations/instances_SPLIT.json and SPLIT/")
    protocol: str | None = Field(
        None, description="a benchmark (ade20k, cityscapes, ...) or a protocol file, to train on its data in `data`"
    )
    data: str | None = Field(None, description="of a protocol: the folder of its data set, or of several data sets")
    split: str | None = Field(None, description="of a folder or protocol: train, val, train2017, training, ...")
    labels: str | None = Field(
        None,
        description="vocabulary of a voc folder's ids: a shipped name or a .txt or .yaml list; "
        "null: the run's, if all ids fit",
    )
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="relative share of samples")

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if sum(path is not None for path in (self.run, self.voc, self.coco, self.protocol)) != 1:
            raise ValueError("a source has exactly one of run, voc, coco and protocol")
        if (self.run is None) != (self.split is not None):
            raise ValueError("a folder (voc, coco) or protocol needs a split, a run has none")
        if (self.protocol is None) != (self.data is None):
            raise ValueError("a protocol needs data, the folder of its data set; other sources have no data")
        if self.labels is not None and self.voc is None:
            raise ValueError("labels is only for voc: runs, COCO files and protocols contain their names")
        return self

    def absolute(self) -> Self:
        """Return the same settings with absolute paths."""
        paths = {kind: getattr(self, kind) for kind in ("run", "voc", "coco", "data")}
        found = {kind: absolute(path) for kind, path in paths.items() if path is not None and path != SELF}
        if self.protocol is not None and is_protocol_file(self.protocol):
            found["protocol"] = absolute(self.protocol)
        if self.labels is not None and is_label_file(self.labels):
            found["labels"] = absolute(self.labels)
        return self.model_copy(update=found)

    @model_serializer(mode="wrap")
    def _without_unset_protocol(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave the keys of a protocol out of other sources: digests of settings are those of earlier versions."""
        values: dict[str, Any] = serialize(self)
        return {key: value for key, value in values.items() if key not in {"protocol", "data"} or value is not None}


class DataSettings(Settings):
    """Those in ``NEUTRAL`` change neither weights nor curve, or are part of the data's own fingerprint."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset(
        {"loader_workers", "loader_cache_mib", "loader_timeout", "stage_to", "sources"}
    )

    sources: tuple[SourceSettings, ...] = Field(
        default=(), description="training data, mixed by weight; empty: the run's own samples"
    )
    balance: float | None = Field(
        None,
        gt=0,
        le=1,
        description="repeat samples of classes that are in a smaller share of samples than this; null: do not",
    )
    crop: int | None = Field(
        default=512, ge=1, description="side of the random crop, pixels; null: whole images, not resized"
    )
    resize_long: int = Field(default=2048, ge=1, description="before the crop, images are scaled to fit in this ...")
    resize_short: int = Field(default=512, ge=1, description="... by this, keeping their aspect, times a ratio")
    scale_low: float = Field(default=0.5, gt=0, description="smallest ratio")
    scale_high: float = Field(default=2.0, gt=0, description="largest ratio")
    one_class_at_most: float = Field(
        default=0.75, gt=0, le=1, description="share of a crop's pixels; else another is drawn, up to 10 times"
    )
    photometric: bool = Field(default=True, description="distort brightness, contrast, saturation and hue")
    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    paste: float = Field(default=0.0, ge=0, le=1, description="probability of pasting another sample's objects")
    duplicate_bits: int | None = Field(
        None,
        ge=0,
        le=7,
        description="samples whose image's hash differs in so few of 64 bits from an earlier one's "
        "are left out; null: none are",
    )
    held_out: int = Field(
        default=0,
        ge=0,
        description="kept samples of the run itself that are not trained on, for the benchmark own-masks",
    )
    shuffle_window: int = Field(default=4, ge=1, description="shards whose samples are mixed")
    loader_workers: int = Field(default=2, ge=0, description="reader processes; 0: the trainer itself")
    loader_cache_mib: int = Field(default=512, ge=0, description="memory per reader for whole shards")
    loader_timeout: float = Field(
        default=600.0,
        gt=0,
        allow_inf_nan=False,
        description="seconds to wait for a batch before training ends with an error",
    )
    stage_to: str | None = Field(
        None, description="a folder on the node's own disk that the samples are copied to; $VARIABLES are expanded"
    )

    @property
    def needs_own_samples(self) -> bool:
        """Whether the run that trains is one of its own sources."""
        return not self.sources or any(source.run == SELF for source in self.sources)

    @model_validator(mode="after")
    def _has_samples_to_hold_out(self) -> Self:
        if self.held_out and not self.needs_own_samples:
            raise ValueError(
                f"held_out is {self.held_out}, but sources does not name the run's own samples (run: {SELF}), which "
                "alone are held out"
            )
        return self

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.scale_low > self.scale_high:
            raise ValueError(f"scale_low is {self.scale_low}, above scale_high {self.scale_high}")
        if self.resize_short > self.resize_long:
            raise ValueError(f"resize_short is {self.resize_short}, above resize_long {self.resize_long}")
        return self
