"""Settings of the data that training sees: which samples, in what order, changed how."""

from typing import ClassVar

from pydantic import Field

from magicseg.settings import Settings


class DataSettings(Settings):
    """The settings in ``NEUTRAL`` change neither weights nor curve."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"loader_workers", "loader_cache_mib"})

    flip: float = Field(default=0.5, ge=0, le=1, description="probability of a horizontal flip")
    paste: float = Field(default=0.0, ge=0, le=1, description="probability of another sample's objects on top")
    duplicate_bits: int | None = Field(
        None,
        ge=0,
        le=7,
        description="samples whose image's hash differs in so few of 64 bits from an earlier one's "
        "are left out; null: none are",
    )
    shuffle_window: int = Field(default=4, ge=1, description="shards whose samples are mixed")
    loader_workers: int = Field(default=2, ge=0, description="reading processes; 0: the trainer itself")
    loader_cache_mib: int = Field(default=512, ge=0, description="memory per reader for whole shards")
