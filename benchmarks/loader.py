"""The training loader reads augmented samples at least 1.5 times as fast as a DataLoader over a folder of images.

Reference: a torch DataLoader with the same number of workers over the same images as JPEG (quality 95) with PNG
masks, and as PNG. Augmentations (`magicseg.data.augmentation`: crop at a random scale, distorted colours, flip),
sampling order, batches and dtypes are the same. The store is read with whole shards cached (``loader_cache_mib`` has
room for a shuffle window), and sample by sample. The start-up is excluded: time is measured from the first batch to
the last. Ratios are the store's samples per second over the folder's: medians over repeats in which all take turns.

    python benchmarks/loader.py --images FOLDER
    python benchmarks/loader.py --plain            # no crop, no distorted colours
    python benchmarks/loader.py --plain --size 64 --samples 2048 --batch-size 32
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from measure import print_table
from numpy.typing import NDArray
from scenes import commit_all, make_run, read_files, triples, write_folder, write_store
from torch.utils.data import DataLoader, Dataset

from magicseg.config.training_data import DataSettings
from magicseg.data.augmentation import (
    MEAN_COLOUR,
    choose_crop,
    cut_image,
    cut_mask,
    distort,
    draw_distortion,
    mirror,
)
from magicseg.data.dataset import Batch
from magicseg.data.kept_samples import KeptSamples
from magicseg.data.loader import training_batches
from magicseg.labels import IGNORE


class FolderDataset(Dataset[Batch]):
    """The same samples as image files, read in the usual way, with the same augmentations."""

    def __init__(self, folder: Path, count: int, suffix: str, settings: DataSettings) -> None:
        self.folder, self.count, self.suffix, self.settings = folder, count, suffix, settings

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        image, other, mask = read_files(self.folder, index, suffix=self.suffix)
        generator = np.random.default_rng((torch.initial_seed(), index))
        if self.settings.crop is not None:
            crop = choose_crop(mask, self.settings, generator)
            image, other, mask = cut_image(image, crop), cut_image(other, crop), cut_mask(mask, crop)
        if self.settings.photometric:
            distortion = draw_distortion(generator)
            image, other = distort(image, distortion), distort(other, distortion)
        if self.settings.crop is not None:
            image, other = (_padded(part, self.settings.crop, MEAN_COLOUR) for part in (image, other))
            mask = _padded(mask, self.settings.crop, IGNORE)
        if generator.random() < self.settings.flip:
            image, other, mask = mirror(image), mirror(other), mirror(mask)
        return Batch(
            torch.from_numpy(image).permute(2, 0, 1),
            torch.from_numpy(other).permute(2, 0, 1),
            torch.from_numpy(mask.astype(np.int32)),
            torch.tensor(True),
            torch.tensor(0),
        )


def _padded(array: NDArray[Any], side: int, value: Any) -> NDArray[Any]:
    if array.shape[:2] == (side, side):
        return array
    result = np.empty((side, side, *array.shape[2:]), array.dtype)
    result[:] = value
    result[: array.shape[0], : array.shape[1]] = array
    return result


def _begin(_worker: int) -> None:
    cv2.setNumThreads(1)


def _stack(samples: list[Batch]) -> Batch:
    return Batch(*(torch.stack(parts) for parts in zip(*samples, strict=True)))


def rate(batches: Iterable[Batch]) -> float:
    """Return the samples per second after the first batch."""
    iterator = iter(batches)
    next(iterator)
    began = time.perf_counter()
    count = sum(len(batch.images) for batch in iterator)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs (.jpg); else synthetic scenes")
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--plain", action="store_true", help="no crop and no distorted colours")
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    scenes = list(triples(arguments.samples, arguments.size, arguments.images))
    steps = arguments.epochs * (arguments.samples // arguments.batch_size)
    change: dict[str, Any] = {"crop": None, "photometric": False} if arguments.plain else {"crop": arguments.size}
    settings = DataSettings(loader_workers=arguments.workers, **change)
    for codec in ("lossless", "jpeg"):
        with tempfile.TemporaryDirectory() as temporary:
            files = {suffix: Path(temporary, suffix[1:]) for suffix in (".jpg", ".png")}
            run = make_run(Path(temporary, "run"), scenes, codec=codec)
            write_store(run, scenes)
            commit_all(run)
            for suffix, folder in files.items():
                write_folder(folder, scenes, suffix=suffix)
            samples = KeptSamples.of(run)

            def from_store(cache_mib: int, samples: KeptSamples = samples) -> Iterable[Batch]:
                own = settings.model_copy(update={"loader_cache_mib": cache_mib})
                return training_batches(samples, own, batch_size=arguments.batch_size, start=0, stop=steps, seed=0)

            def from_folder(suffix: str, files: dict[str, Path] = files) -> Iterable[Batch]:
                order = np.random.default_rng(0)
                indices = [order.permutation(arguments.samples) for _ in range(arguments.epochs)]
                usable = np.concatenate(indices)[: steps * arguments.batch_size]
                return DataLoader(
                    FolderDataset(files[suffix], arguments.samples, suffix, settings),
                    batch_sampler=[batch.tolist() for batch in usable.reshape(steps, -1)],
                    collate_fn=_stack,
                    num_workers=arguments.workers,
                    worker_init_fn=_begin,
                )

            ways: dict[str, Callable[[], Iterable[Batch]]] = {
                "folder, JPEG + PNG masks": partial(from_folder, ".jpg"),
                "folder, PNG + PNG masks": partial(from_folder, ".png"),
                "store, whole shards": partial(from_store, 2**20),
                "store, single samples": partial(from_store, 0),
            }
            found: dict[str, list[float]] = {name: [] for name in ways}
            for _ in range(arguments.repeats):
                for name, way in ways.items():
                    found[name].append(rate(way()))
        reference = statistics.median(found["folder, JPEG + PNG masks"])
        print_table(
            f"{arguments.samples} samples of {arguments.size} px, {codec} store, "
            f"{'plain' if arguments.plain else 'augmented'}; {arguments.workers} workers, batches of "
            f"{arguments.batch_size}, {arguments.epochs} epochs (median of {arguments.repeats})",
            ["", "samples/s", "ratio"],
            [
                [name, value, value / reference]
                for name, value in ((name, statistics.median(values)) for name, values in found.items())
            ],
        )


if __name__ == "__main__":
    main()
