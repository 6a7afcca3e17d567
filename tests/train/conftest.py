"""A data set in memory: coloured squares, one class each."""

import pytest
from coloured_squares import Squares

from magicseg.labels import Label, Vocabulary
from magicseg.model.settings import EncoderSettings
from magicseg.train.settings import TrainSettings


@pytest.fixture
def squares():
    return Squares


@pytest.fixture
def vocabulary():
    names = ("red", "green", "blue")
    return Vocabulary(
        name="colours", labels=tuple(Label(id=place, name=name) for place, name in enumerate(names, start=1))
    )


@pytest.fixture
def settings():
    """A tiny model and a run of 8 steps, with everything random switched on."""
    return TrainSettings(
        encoder=EncoderSettings(image_size=16, stride=4, width=16, layers=2, heads=2, embed_dim=16),
        prompt_tokens=2,
        decoder_layers=2,
        decoder_width=16,
        decoder_heads=2,
        steps=8,
        batch_size=5,
        learning_rate=1e-3,
        new_layer_lr_multiplier=2,
        warmup_steps=2,
        sampled_classes=2,
        checkpoint_every=100,
        log_every=3,
        paste=0.3,
        loader_workers=0,
        shuffle_window=2,
    )
