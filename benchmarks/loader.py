"""Training's loader gives samples at least as fast as a DataLoader over a folder of image files.

Reference: a torch DataLoader with as many workers over the same pictures as PNG, or JPEG 95, with PNG masks, with
the same random order of samples, batches and horizontal flips, and the same dtypes at the end. The store is read
with whole shards cached (the setting ``loader_cache_mib`` has room for a shuffle window) and sample by sample.
Starting up is left out: the clock runs from the first batch to the last. Ratios are the store's samples per second
over the folder's in the same repeat.

    python benchmarks/loader.py
    python benchmarks/loader.py --size 64 --samples 2048 --batch-size 32
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from measure import print_table
from scenes import commit_all, make_run, read_files, triples, write_folder, write_store
from torch.utils.data import DataLoader, Dataset

from magicseg.store.kept import KeptSamples
from magicseg.train.data import Batch, SampleDataset, SampleOrder, Steps, load_batches

_WINDOW = 4


class FolderDataset(Dataset[Batch]):
    """The same samples as files, read as most people would."""

    def __init__(self, folder: Path, count: int, suffix: str) -> None:
        self.folder, self.count, self.suffix = folder, count, suffix

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Batch:
        image, other, mask = read_files(self.folder, index, suffix=self.suffix)
        if torch.rand(()) < 0.5:
            image, other, mask = image[:, ::-1].copy(), other[:, ::-1].copy(), mask[:, ::-1].copy()
        return Batch(
            torch.from_numpy(image).permute(2, 0, 1),
            torch.from_numpy(other).permute(2, 0, 1),
            torch.from_numpy(mask.astype(np.int32)),
            torch.tensor(True),
            torch.tensor(0),
        )


def _stack(samples: list[Batch]) -> Batch:
    return Batch(*(torch.stack(parts) for parts in zip(*samples, strict=True)))


def rate(batches: Iterable[Batch]) -> float:
    """Samples per second from the end of the first batch."""
    iterator = iter(batches)
    next(iterator)
    began = time.perf_counter()
    count = sum(len(batch.images) for batch in iterator)
    return count / (time.perf_counter() - began)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of photographs (.jpg); else synthetic scenes")
    parser.add_argument("--samples", type=int, default=384)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    pictures = list(triples(arguments.samples, arguments.size, arguments.images))
    steps = arguments.epochs * (arguments.samples // arguments.batch_size)
    for codec, suffix in (("lossless", ".png"), ("jpeg", ".jpg")):
        with tempfile.TemporaryDirectory() as temporary:
            files = Path(temporary, "files")
            run = make_run(Path(temporary, "run"), pictures, codec=codec)
            write_store(run, pictures)
            commit_all(run)
            write_folder(files, pictures, suffix=suffix)
            samples = KeptSamples.of(run)

            def from_store(cache_bytes: int, samples: KeptSamples = samples) -> Iterable[Batch]:
                order = SampleOrder(samples.indices, shard_size=samples.shard_size, window=_WINDOW, seed=0)
                dataset = SampleDataset(samples, window=_WINDOW, seed=0, flip=0.5, paste=0.0, cache_bytes=cache_bytes)
                span = Steps(order, batch_size=arguments.batch_size, start=0, stop=steps)
                return load_batches(dataset, span, workers=arguments.workers)

            def from_folder(files: Path = files, suffix: str = suffix) -> Iterable[Batch]:
                order = np.random.default_rng(0)
                indices = [order.permutation(arguments.samples) for _ in range(arguments.epochs)]
                usable = np.concatenate(indices)[: steps * arguments.batch_size]
                return DataLoader(
                    FolderDataset(files, arguments.samples, suffix),
                    batch_sampler=[batch.tolist() for batch in usable.reshape(steps, -1)],
                    collate_fn=_stack,
                    num_workers=arguments.workers,
                )

            found: dict[str, list[float]] = {"folder": [], "store, whole shards": [], "store, single": []}
            for _ in range(arguments.repeats):
                found["folder"].append(rate(from_folder()))
                found["store, whole shards"].append(rate(from_store(2**40)))
                found["store, single"].append(rate(from_store(0)))
        reference = statistics.median(found["folder"])
        print_table(
            f"{arguments.samples} samples of {arguments.size} px, {codec}; {arguments.workers} workers, batches of "
            f"{arguments.batch_size}, {arguments.epochs} epochs (median of {arguments.repeats})",
            ["", "samples/s", "ratio"],
            [
                [name + (f" (*{suffix} + png)" if name == "folder" else ""), value, value / reference]
                for name, value in ((name, statistics.median(values)) for name, values in found.items())
            ],
        )


if __name__ == "__main__":
    main()
