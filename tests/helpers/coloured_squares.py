"""A data set in memory: coloured squares, one class each. Loader processes can import this module."""

from dataclasses import dataclass, field

import numpy as np

from magicseg.config.model import EncoderSettings
from magicseg.config.training import TrainSettings
from magicseg.labels import Label, Vocabulary

VOCABULARY = Vocabulary(
    name="colours", labels=tuple(Label(id=id_, name=name) for id_, name in enumerate(("red", "green", "blue"), 1))
)

# A tiny model and a training of 8 steps, with all random features enabled.
SETTINGS = TrainSettings(
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
    crop=None,
    photometric=False,
    loader_workers=0,
    shuffle_window=2,
)


@dataclass(frozen=True)
class Squares:
    """Sample i: a square of class i % 3 + 1 in its class's colour, on grey. ``calls`` counts the samples read."""

    indices: np.ndarray
    shard_size: int = 4
    image_size: int = 16
    calls: list[int] = field(default_factory=list)
    allowed: None = None
    validated: bool = False

    def labels(self):
        return (self.indices[:, None] % 3 + 1).astype(np.uint16)

    def read(self, indices):
        self.calls.append(len(indices))
        assert set(np.asarray(indices).tolist()) <= set(self.indices.tolist())
        shape = (len(indices), self.image_size, self.image_size)
        masks = np.zeros(shape, np.uint16)
        noise = np.stack([np.random.default_rng(int(i)).integers(0, 40, (*shape[1:], 3)) for i in indices])
        counterfactuals = (100 + noise).astype(np.uint8)
        images = counterfactuals.copy()
        for position, index in enumerate(indices):
            top, left = int(index) % 5, int(index) % 7
            masks[position, top : top + 8, left : left + 8] = int(index) % 3 + 1
            images[position, top : top + 8, left : left + 8, int(index) % 3] = 240
        return images, counterfactuals, masks
