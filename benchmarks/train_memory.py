"""The memory of training does not grow over thousands of steps of a tiny model.

The script prints the resident memory of the process at some steps, with log, TensorBoard, checkpoints, moving average
and evaluation enabled, and without loader processes. It fails if the memory grows by more than ``--allowed`` MiB from
the first tenth to the end.

    python benchmarks/train_memory.py
    python benchmarks/train_memory.py --steps 2000
"""

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

import numpy as np
import psutil
import torch
from measure import print_table
from numpy.typing import NDArray

from magicseg.config.model import EncoderSettings
from magicseg.config.training import TrainSettings
from magicseg.data.dataset import Read
from magicseg.labels import Label, Vocabulary
from magicseg.model.segmenter import Segmenter
from magicseg.train.loop import TrainProgress, train

_SIDE = 16


@dataclasses.dataclass(frozen=True)
class _Noise:
    """Images of noise with one square each."""

    indices: NDArray[np.int64] = dataclasses.field(default_factory=lambda: np.arange(256))
    shard_size: int = 16
    image_size: int = _SIDE
    allowed: None = None
    validated: bool = False

    def read(self, indices: NDArray[np.int64]) -> Read:
        generator = np.random.default_rng(int(indices[0]))
        images = generator.integers(0, 256, (len(indices), _SIDE, _SIDE, 3), dtype=np.uint8)
        masks = np.zeros((len(indices), _SIDE, _SIDE), np.uint16)
        masks[:, 4:12, 4:12] = (indices % 3 + 1)[:, None, None]
        return images, 255 - images, masks


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--allowed", type=float, default=8.0, help="MiB")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    tenth = max(arguments.steps // 10, 1)
    settings = TrainSettings(
        encoder=EncoderSettings(image_size=_SIDE, stride=8, width=16, layers=1, heads=2, embed_dim=16),
        prompt_tokens=2,
        decoder_layers=1,
        decoder_width=16,
        decoder_heads=2,
        steps=arguments.steps,
        batch_size=4,
        learning_rate=1e-4,
        warmup_steps=10,
        gradient_clip=1.0,
        ema_decay=0.99,
        log_every=20,
        checkpoint_every=max(tenth // 4, 1),
        evaluate_every=max(tenth // 4, 1),
        tensorboard=True,
        loader_workers=0,
        crop=None,
        photometric=False,
    )
    vocabulary = Vocabulary(name="squares", labels=tuple(Label(id=at, name=f"kind {at}") for at in (1, 2, 3)))
    process = psutil.Process()
    seen: dict[int, float] = {}

    def look(state: TrainProgress) -> None:
        if state.step % tenth == 0 or state.step == max(tenth // 10, 1):
            seen[state.step] = process.memory_info().rss / 2**20

    def evaluate(_model: Segmenter, step: int) -> dict[str, float]:
        return {"miou": -float(step)}

    with tempfile.TemporaryDirectory() as folder:
        train(
            _Noise(),
            vocabulary,
            settings,
            Path(folder),
            seed=0,
            data_fingerprint="",
            progress=look,
            evaluate=evaluate,
        )
    print_table("memory while training", ["step", "resident MiB"], [[step, mib] for step, mib in seen.items()])
    grown = seen[arguments.steps] - seen[tenth]
    print(f"from step {tenth} to {arguments.steps}: {grown:+.1f} MiB")
    if grown > arguments.allowed:
        sys.exit(1)


if __name__ == "__main__":
    main()
