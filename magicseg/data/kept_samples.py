"""Reading the kept samples of a finished data set, for training."""

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from magicseg.config.training_data import DataSettings
from magicseg.core.errors import IncompleteError
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command
from magicseg.data.duplicates import image_hashes, near_duplicates
from magicseg.run.directory import Run
from magicseg.store.sample_reader import SampleFiles
from magicseg.store.zarr_store import Dataset

Images = NDArray[np.uint8] | list[NDArray[np.uint8]]
Masks = NDArray[np.uint16] | list[NDArray[np.uint16]]


@dataclass(frozen=True)
class KeptSamples:
    """The samples that passed every stage. Picklable: loader workers open the store themselves.

    ``indices`` are ascending and have gaps where samples were dropped. ``near_duplicates``: how many were left out as
    such. ``validated``: whether the run checked its pairs (``generate.validity``).
    """

    path: Path
    indices: NDArray[np.int64] = field(repr=False)
    shard_size: int
    image_size: int
    near_duplicates: int = 0
    planned: NDArray[np.uint16] | None = field(default=None, repr=False)
    validated: bool = False
    allowed: ClassVar[None] = None

    @classmethod
    def of(cls, run: Run, *, settings: DataSettings | None = None) -> "KeptSamples":
        """Open a run's data.

        Args: settings: of the training, where that is another run's.
        Raises: IncompleteError if masks are missing or nothing was kept.
        """
        commits = run.checked_commits("mask")
        missing = set(range(run.plan.shards)) - commits.keys()
        if missing:
            raise IncompleteError(
                f"{run.path}: {len(missing)} shards of mask are not done: {format_ranges(missing)}",
                hint=command("magicseg", "run", run.path),
            )
        indices = np.array(
            [
                run.plan.shard_range(shard).start + offset
                for shard in sorted(commits)
                for offset in commits[shard].kept_offsets()
            ],
            dtype=np.int64,
        )
        if indices.size == 0:
            raise IncompleteError(f"{run.path}: no sample was kept", hint=command("magicseg", "status", run.path))
        _opened.cache_clear()  # its layout may have changed since
        _sample_files.cache_clear()
        bits, before = (settings or run.config.train).duplicate_bits, len(indices)
        if bits is not None:
            indices = indices[~near_duplicates(image_hashes(run, indices), bits)]
        return cls(
            run.store.path,
            indices,
            run.plan.shard_size,
            run.config.generate.size,
            before - len(indices),
            np.asarray(run.plan.classes[indices]),
            run.config.generate.validity is not None,
        )

    def labels(self) -> NDArray[np.uint16]:
        """The labels that were planned, (samples, most), 0 where there are fewer; in the order of ``indices``."""
        assert self.planned is not None
        return self.planned

    def read(self, indices: NDArray[np.int64]) -> tuple[Images, Images, Masks]:
        """Images and counterfactuals, uint8 (H, W, 3), and masks, uint16 (H, W), in the order of ``indices``.

        Whole shards (all that were kept of them) come as one array each; others are read one by one, into lists.
        """
        shards = np.asarray(indices) // self.shard_size
        if len(indices) > 1 and shards[0] == shards[-1] and self._is_whole(indices):
            return self._read_stretches(indices)
        files = _sample_files(self.path, self.shard_size, self.image_size)
        each = [int(index) for index in indices]
        return (
            [files.image("generate/image", index) for index in each],
            [files.image("generate/counterfactual", index) for index in each],
            [files.mask(index) for index in each],
        )

    def _is_whole(self, indices: NDArray[np.int64]) -> bool:
        shard = int(indices[0]) // self.shard_size
        first, last = np.searchsorted(self.indices, (shard * self.shard_size, (shard + 1) * self.shard_size))
        return np.array_equal(indices, self.indices[first:last])

    def _read_stretches(self, indices: NDArray[np.int64]) -> tuple[Images, Images, Masks]:
        store = _opened(self.path, self.shard_size, self.image_size)
        count, size = len(indices), self.image_size
        images = np.empty((count, size, size, 3), np.uint8)
        counterfactuals = np.empty_like(images)
        masks = np.empty((count, size, size), np.uint16)
        # Stretches without gaps become one read each.
        for places in np.split(np.arange(count), np.flatnonzero(np.diff(indices) != 1) + 1):
            start, stop = int(indices[places[0]]), int(indices[places[-1]]) + 1
            images[places] = store.read_images("generate/image", start, stop)
            counterfactuals[places] = store.read_images("generate/counterfactual", start, stop)
            masks[places] = store.read("mask/mask", start, stop)
        return images, counterfactuals, masks


def _files_of(path: Path, shard_size: int, image_size: int) -> SampleFiles:
    return SampleFiles(path, shard_size=shard_size, image_size=image_size)


_sample_files = lru_cache(maxsize=64)(_files_of)
_opened = lru_cache(maxsize=64)(Dataset)
