"""Apply a trained model: images of any kind and size and a list of names in, label maps and scores out.

model = load_model("runs/first")                    # a run, or a model's folder
found = model.segment(Image.open("x.jpg"), ["cat", "grass"])
found.labels == 1                                   # pixels of the cat; 0: background
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from magicseg.core.errors import DataError
from magicseg.images.reading import rgb_pixels
from magicseg.model.saved_model import load_segmenter
from magicseg.model.segmenter import Segmenter
from magicseg.model.sliding_window import logit_stripes

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

_WINDOWS = 4  # per batch


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """One image's result, at its own size.

    ``labels``: int32 (H, W): 0 where no class reaches the threshold, i where the i-th name (from 1) scores highest.
    ``best``: float32 (H, W), each pixel's highest score, also below the threshold. ``scores``: float32 (K, H, W),
    each class's own probability (a sigmoid: they need not sum to 1); empty, (0, H, W), if not requested.
    """

    labels: NDArray[np.int32]
    best: NDArray[np.float32]
    scores: NDArray[np.float32]


class OpenVocabularyModel:
    """A loaded model. ``segmenter``: the torch module, in inference mode.

    The text embeddings of the latest labels are cached, so make a new instance after changing weights or device.
    """

    def __init__(self, segmenter: Segmenter, *, device: str = "cpu") -> None:
        self.segmenter = segmenter.to(device).eval()
        self._device = device
        self._classes: list[list[str]] | None = None
        self._texts = torch.empty(0)  # of _classes

    @overload
    def segment(
        self,
        images: "NDArray[np.uint8] | PILImage",
        labels: Sequence[str | Sequence[str]],
        *,
        threshold: float = ...,
        window: int | None = ...,
        stride: int | None = ...,
        short_side: int | None = ...,
        scores: bool = ...,
    ) -> Segmentation: ...

    @overload
    def segment(
        self,
        images: "Sequence[NDArray[np.uint8] | PILImage]",
        labels: Sequence[str | Sequence[str]],
        *,
        threshold: float = ...,
        window: int | None = ...,
        stride: int | None = ...,
        short_side: int | None = ...,
        scores: bool = ...,
    ) -> list[Segmentation]: ...

    def segment(
        self,
        images: "NDArray[np.uint8] | PILImage | Sequence[NDArray[np.uint8] | PILImage]",
        labels: Sequence[str | Sequence[str]],
        *,
        threshold: float = 0.5,
        window: int | None = None,
        stride: int | None = None,
        short_side: int | None = None,
        scores: bool = True,
    ) -> Segmentation | list[Segmentation]:
        """Segment one image or a sequence of images.

        Args:
            images: uint8 arrays (H, W, 3), RGB, (H, W, 1) or (H, W), grey, or (H, W, 4), RGBA; or PIL images of
                any mode, which are rotated as their EXIF data say. Transparent pixels are blended with white. Grey of
                more than 8 bits is stretched to the full range. Sizes may differ.
            labels: K different names; a list gives synonyms, the name first: ["sofa", "couch"].
            threshold: a pixel whose highest score is below it is background.
            window: side of overlapping windows, pixels after resizing; None: the whole image at once.
            stride: pixels from one window to the next; None: 5/6 of a window.
            short_side: resize the image to this shorter side, pixels; None: do not resize.
            scores: return the scores of all classes, 4 bytes per label and pixel: 7 GB for 150 labels and 12
                megapixels. Without scores, memory depends on the labels and the window only.

        Returns: a `Segmentation`, or a list of them for a sequence.
        Raises: DataError if an image or a label is not as described; BackendError if the model cannot tell two labels
        apart.
        """
        classes = _checked(labels)
        if any(pixels is not None and pixels < 1 for pixels in (short_side, stride)):
            raise DataError(f"short_side ({short_side}) and stride ({stride}) must be above 0")
        if window is not None and window < self.segmenter.stride:
            raise DataError(f"a window of {window} pixels is smaller than a patch of {self.segmenter.stride}")
        with torch.inference_mode():
            if classes != self._classes:
                self.segmenter.check_classes(classes)
                self._texts = self.segmenter.encode_classes(classes)
                self._classes = classes
            text = self._texts
            if isinstance(images, np.ndarray | Image.Image):
                return self._segment(_pixels(images), text, threshold, window, stride, short_side, scores)
            return [
                self._segment(_pixels(image), text, threshold, window, stride, short_side, scores) for image in images
            ]

    def _segment(
        self,
        image: NDArray[np.uint8],
        text: Tensor,
        threshold: float,
        window: int | None,
        stride: int | None,
        short_side: int | None,
        with_scores: bool,
    ) -> Segmentation:
        def logits(crops: Tensor) -> Tensor:
            return self.segmenter.native_logits(crops.to(self._device), text)

        size = image.shape[:2]
        labels, best = np.empty(size, np.int32), np.empty(size, np.float32)
        scores = np.empty((len(text) if with_scores else 0, *size), np.float32)
        try:
            for rows, found in logit_stripes(
                logits,
                image,
                short_side=short_side,
                window=window,
                stride_px=stride or max(1, (window or 0) * 5 // 6),
                batch_size=_WINDOWS,
                multiple=self.segmenter.stride,
                average=self.segmenter.window_average,
            ):
                probabilities = found.sigmoid()
                highest, places = probabilities.max(dim=0)
                labels[rows] = torch.where(highest < threshold, 0, places + 1).cpu().numpy()
                best[rows] = highest.cpu().numpy()
                if with_scores:
                    scores[:, rows] = probabilities.cpu().numpy()
        except ValueError as error:
            raise DataError(str(error)) from error
        return Segmentation(labels=labels, best=best, scores=scores)


def load_model(path: str | Path, *, device: str = "cpu") -> OpenVocabularyModel:
    """Load a trained model from its folder, or from the run that trained it.

    Args: device: as torch names it: "cpu", "cuda", "cuda:1".
    Raises: DataError if there is no model, or it is damaged.
    """
    return OpenVocabularyModel(load_segmenter(model_folder(Path(path))), device=device)


def model_folder(path: Path) -> Path:
    """Return the folder with the model's files: ``path`` itself, or its ``model`` if it is a run."""
    if not (path / "model.json").exists() and (path / "model" / "model.json").exists():
        return path / "model"
    return path


def _checked(labels: Sequence[str | Sequence[str]]) -> list[list[str]]:
    if isinstance(labels, str):
        raise DataError(f"labels is the one text {labels!r}, not a list of names", hint=f"[{labels!r}]")
    classes = [[label] if isinstance(label, str) else label for label in labels]
    if not classes or not all(
        isinstance(names, list | tuple) and names and all(isinstance(name, str) and name.strip() for name in names)
        for names in classes
    ):
        raise DataError(f"labels must be names, and at least one: got {list(labels)!r}")
    stripped = [[name.strip() for name in names] for names in classes]
    firsts = [names[0] for names in stripped]
    twice = sorted({name for name in firsts if firsts.count(name) > 1})
    if twice:
        raise DataError(f"labels has {', '.join(map(repr, twice))} more than once")
    return stripped


def _pixels(image: "NDArray[np.uint8] | PILImage") -> NDArray[np.uint8]:
    """Return the image as uint8 (H, W, 3), RGB. Raises DataError if it is not an image."""
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise DataError(f"an image is an array of {image.dtype}, not of uint8 (values 0 to 255)")
        grey = image.ndim == 3 and image.shape[2] == 1
        shown = image[..., 0] if grey else image
        if shown.size == 0 or not (shown.ndim == 2 or (shown.ndim == 3 and shown.shape[2] in {3, 4})):
            raise DataError(f"an image has the shape {image.shape}, not (H, W, 3), (H, W, 4), (H, W, 1) or (H, W)")
        image = Image.fromarray(shown)
    elif isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
    else:
        raise DataError(f"an image is a {type(image).__name__}, not an array or a PIL image")
    try:
        return np.array(rgb_pixels(image))
    except ValueError as error:
        raise DataError(f"an image of mode {image.mode} cannot be used: {error}") from error
