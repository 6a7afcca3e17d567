"""Counterfactuals by inpainting: the objects' pixels are filled, all others are kept. Imports torch."""

import warnings
from collections.abc import Sequence
from typing import Any

import diffusers
import numpy as np
import PIL.Image
import torch
from numpy.typing import NDArray
from PIL import ImageFilter

from magicseg.backends import DetectRequest, GenerateRequest, Image
from magicseg.core.devices import (
    first_line,
    is_out_of_memory,
    largest_fitting,
    refuse_device_fault,
)
from magicseg.core.errors import BackendError, OutOfMemory
from magicseg.labels import Label
from magicseg.stages.generate.diffusers_options import InpaintOptions
from magicseg.stages.generate.pipeline import PaintedImages, TextToImage, to_painted
from magicseg.vision.batches import HasBatch
from magicseg.vision.finder import Finder

Where = NDArray[np.bool_]  # (height, width)


class ObjectRemover:
    """Finds a sample's objects in its image and fills their pixels, with the weights of the pipeline that made it."""

    def __init__(self, painter: TextToImage, options: InpaintOptions) -> None:
        """Load detector and segmenter. Raises: BackendError."""
        self._painter, self._options = painter, options
        if not painter.family.inpaint:
            raise _no_inpainting(painter.family.title)
        try:
            with warnings.catch_warnings():
                # diffusers imports all pipelines here, and one of them uses it.
                warnings.filterwarnings("ignore", r"`torch\.jit\.script` is deprecated", FutureWarning)
                self._pipe: Any = diffusers.AutoPipelineForInpainting.from_pipe(painter.pipe)
        except ValueError as error:
            raise _no_inpainting(painter.family.title) from error
        self._pipe.set_progress_bar_config(disable=True)
        self._finder = Finder(options, HasBatch(options.batch_size, "generate.options.inpaint.batch_size"))

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the detector cannot query one of these labels."""
        self._finder.check_labels(labels)

    def holes(self, images: Sequence[Image], requests: Sequence[GenerateRequest]) -> list[Where | str]:
        """Return each image's pixels to fill, or its fault: "object-missing" or "object-too-large"."""
        found = self._finder.find(
            [DetectRequest(image=image, labels=one.labels) for image, one in zip(images, requests, strict=True)]
        )
        answers: list[Where | str] = []
        outlines = self._finder.outlines(images, found)
        for image, request, objects, parts in zip(images, requests, found, outlines, strict=True):
            inside: Where = np.zeros(image.shape[:2], bool)
            for part in parts:
                inside |= (part.logits > 0).any(axis=0)
            if set(objects.labels.tolist()) != set(range(len(request.labels))) or not inside.any():
                answers.append("object-missing")
                continue
            hole = grown(inside, self._options.grow)
            answers.append("object-too-large" if float(hole.mean()) > self._options.max_area else hole)
        return answers

    def fill(
        self, texts: Sequence[str], seeds: Sequence[int], images: Sequence[Image], holes: Sequence[Where]
    ) -> PaintedImages:
        """Return the images with their holes filled; pixels outside do not change. Raises OutOfMemory."""
        try:
            result = self._call(texts, seeds, images, holes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                refuse_device_fault(error, self._painter.device)
                raise
            message = first_line(error)
        else:
            return self._overlaid(result, images, holes)
        fitting = largest_fitting(
            len(texts), lambda count: self._call(texts[:count], seeds[:count], images[:count], holes[:count])
        )
        raise OutOfMemory(
            f"generate.batch_size is {len(texts)}: no memory to fill so many images: {message}",
            hint=f"{fitting} fits: set generate.batch_size to {fitting} (its shards are then regenerated)"
            if fitting
            else "not even 1 fits: try generate.options.vae_slicing, attention_slicing or a smaller dtype",
        )

    def _call(
        self, texts: Sequence[str], seeds: Sequence[int], images: Sequence[Image], holes: Sequence[Where]
    ) -> Any:
        painter = self._painter
        painter.use_threads()
        arguments = painter.arguments(texts, seeds, painter.steps) | {
            "image": [PIL.Image.fromarray(image) for image in images],
            "mask_image": [PIL.Image.fromarray(hole.astype(np.uint8) * 255) for hole in holes],
            "strength": self._options.strength,
        }
        return self._pipe(**arguments)

    def _overlaid(self, result: Any, images: Sequence[Image], holes: Sequence[Where]) -> PaintedImages:
        filled = to_painted(result.images, getattr(result, "nsfw_content_detected", None))
        kept = ~np.stack(holes)[..., None]
        return PaintedImages(
            images=np.where(kept, np.stack(images), filled.images), undefined=filled.undefined, unsafe=filled.unsafe
        )

    def warm_up(self, count: int) -> None:
        """Make one call, so that errors show before the first shard. Raises BackendError, OutOfMemory."""
        size = self._painter.size
        image = np.full((size, size, 3), 128, np.uint8)
        hole = np.zeros((size, size), bool)
        hole[: size // 2, : size // 2] = True
        try:
            with torch.inference_mode():
                self.fill(["a photo"] * count, [0] * count, [image] * count, [hole] * count)
        except BackendError:
            raise
        except Exception as error:  # whatever the parts do to each other
            raise BackendError(
                f"generate.options.inpaint: a first batch fails: {type(error).__name__}: {error}",
                hint="choose replace or rewrite, or other weights",
            ) from error


def _no_inpainting(title: str) -> BackendError:
    return BackendError(
        f"generate.options.counterfactual: inpaint is not possible with {title}", hint="choose replace or rewrite"
    )


def grown(inside: Where, share: float) -> Where:
    """Return ``inside`` with a margin of ``share`` of the image's longer side."""
    radius = round(share * max(inside.shape))
    if not radius:
        return inside
    area = PIL.Image.fromarray(inside.astype(np.uint8) * 255)
    return np.asarray(area.filter(ImageFilter.MaxFilter(2 * radius + 1))) > 0
