"""The preset ``paper`` at a size for tests: its own settings, with a tiny CLIP of random weights."""

from magicseg.config.loading import load_config
from magicseg.config.training import TrainSettings

from .tiny_clip import config_of

ARCHITECTURE = "Tiny-8"
SIZES = (
    f"train.encoder.architecture={ARCHITECTURE}",
    "train.encoder.weights=null",
    "train.encoder.image_size=48",  # pretrained at 32: positions are resized
    "train.decoder_width=16",
    "train.prompt_tokens=3",
    "train.sampled_classes=4",
)


def tiny_paper(monkeypatch, *overrides: str) -> TrainSettings:
    """Return the preset's training settings at smaller sizes. open_clip knows the tiny model while the test runs."""
    config = {**config_of("open_clip_quickgelu"), "embed_dim": 16}
    monkeypatch.setattr("open_clip.factory._MODEL_CONFIGS", {ARCHITECTURE: config})
    return load_config(preset="paper", overrides=[*SIZES, *overrides]).train
