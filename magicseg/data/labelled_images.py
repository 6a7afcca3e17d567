"""What evaluation asks of a data set: names, images with ground truth, and the protocol to score them by."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from typing import Protocol as Interface

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from magicseg.data.protocol import Protocol


class LabelledImages(Interface):
    """A data set: files on disk (`magicseg.data.ground_truth.DataSet`), or painted scenes."""

    @property
    def protocol(self) -> "Protocol":
        """The classes, their ids, and how images are scored."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, unique, in a fixed order."""
        ...

    @property
    def batch(self) -> int | None:
        """How many images, all of one size, go through a model together. None: one by one, in sliding windows."""
        ...

    def pair(self, name: str) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
        """Return the image, uint8 (H, W, 3), RGB, and its ground truth, uint16 (H, W). Raises DataError."""
        ...

    @property
    def has_counterfactuals(self) -> bool:
        """Whether every image has a counterfactual: the same scene without the classes in its ground truth."""
        ...

    def with_counterfactual(
        self, name: str
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint16], NDArray[np.uint8] | None]:
        """Return an image and its class map, as `pair` does, and its counterfactual, uint8 (H, W, 3) or None."""
        ...

    def where(self, name: str) -> str:
        """Return what messages call the image, such as its path."""
        ...

    def digest(self) -> str:
        """Return a SHA-256 that changes with the data, computed without reading images."""
        ...

    def about(self) -> Mapping[str, Any]:
        """Return JSON values about the data that a swept threshold keeps."""
        ...
