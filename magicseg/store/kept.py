"""Reading the kept samples of a finished data set, for training."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from magicseg.errors import IncompleteError
from magicseg.run.directory import Run
from magicseg.run.ranges import format_ranges
from magicseg.store.dataset import Dataset
from magicseg.store.duplicates import image_hashes, near_duplicates


@dataclass(frozen=True)
class KeptSamples:
    """The samples that passed every stage. Picklable: loader workers open the store themselves.

    ``indices`` are ascending and have gaps where samples were dropped. ``near_duplicates``: how many were left out as
    such.
    """

    path: Path
    indices: NDArray[np.int64] = field(repr=False)
    shard_size: int
    image_size: int
    near_duplicates: int = 0

    @classmethod
    def of(cls, run: Run) -> "KeptSamples":
        """Open a run's data. Raises: IncompleteError if masks are missing or nothing was kept."""
        commits = run.checked_commits("mask")
        missing = set(range(run.plan.shards)) - commits.keys()
        if missing:
            raise IncompleteError(
                f"{run.path}: {len(missing)} shards of mask are not done: {format_ranges(missing)}",
                hint=f"magicseg run {run.path}",
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
            raise IncompleteError(f"{run.path}: no sample was kept", hint=f"magicseg status {run.path}")
        _open_stores.pop(run.store.path, None)  # it may have been laid out anew since
        bits, before = run.config.train.duplicate_bits, len(indices)
        if bits is not None:
            indices = indices[~near_duplicates(image_hashes(run, indices), bits)]
        return cls(run.store.path, indices, run.plan.shard_size, run.config.generate.size, before - len(indices))

    def read(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.uint16]]:
        """Images and counterfactuals, uint8 (B, H, W, 3), and masks, uint16 (B, H, W), in the order of ``indices``.

        Neighbouring indices are read together, so ask for whole stretches where you can.
        """
        store = _opened(self.path)
        count, size = len(indices), self.image_size
        images = np.empty((count, size, size, 3), np.uint8)
        counterfactuals = np.empty_like(images)
        masks = np.empty((count, size, size), np.uint16)
        order = np.argsort(indices, kind="stable")
        ascending = np.asarray(indices)[order]
        # Stretches without gaps inside one shard become one read each.
        cuts = np.flatnonzero((np.diff(ascending) != 1) | (ascending[1:] % self.shard_size == 0)) + 1
        for places in np.split(order, cuts):
            start, stop = int(indices[places[0]]), int(indices[places[-1]]) + 1
            images[places] = store.read_images("generate/image", start, stop)
            counterfactuals[places] = store.read_images("generate/counterfactual", start, stop)
            masks[places] = store.read("mask/mask", start, stop)
        return images, counterfactuals, masks


@dataclass(frozen=True)
class _OpenDataset(Dataset):
    """A store whose arrays stay open: opening one costs more than reading a sample."""

    _arrays: dict[str, zarr.Array[Any]] = field(default_factory=dict, compare=False, repr=False)

    def array(self, name: str) -> zarr.Array[Any]:
        if name not in self._arrays:
            self._arrays[name] = super().array(name)
        return self._arrays[name]


_open_stores: dict[Path, _OpenDataset] = {}


def _opened(path: Path) -> Dataset:
    """One open store per process."""
    if path not in _open_stores:
        _open_stores[path] = _OpenDataset(path)
    return _open_stores[path]
