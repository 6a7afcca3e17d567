"""Promptable segmenters of the transformers library: SAM, SAM-HQ, SAM 2 and 2.1, SAM 3, EdgeTAM. Imports torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForMaskGeneration, AutoProcessor

from magicseg.backends import Image, SegmentRequest, Segments
from magicseg.core.devices import prepare_device
from magicseg.vision.batches import BOXES_PER_CALL, HasBatch, fixed_batches
from magicseg.vision.inference import compile_encoder, load_pretrained, refuse_unknown_class, run_batch, weights_dtype
from magicseg.vision.model_options import SegmenterOptions

# Classes in a checkpoint's config.json. Of a model for videos the library loads the part that segments images.
_KNOWN = (
    *("SamModel", "SamHQModel", "Sam2Model", "Sam2VideoModel"),
    *("EdgeTamModel", "EdgeTamVideoModel", "Sam3TrackerModel", "Sam3TrackerVideoModel"),
)
# The last bits of an image's masks or qualities depend on its place in a batch (seen on CPUs).
_ONE_BY_ONE = frozenset({"EdgeTamModel", "Sam3TrackerModel"})


@dataclass(frozen=True)
class _Prepared:
    """An image as the model takes it, on the CPU, and its (height, width) in pixels before and after resizing."""

    pixels: torch.Tensor
    size: tuple[int, int]
    resized: tuple[int, int]


@dataclass(frozen=True)
class _Embedded:
    """An image's embedding, and its (height, width) in pixels before and after resizing."""

    maps: tuple[torch.Tensor, ...]
    size: tuple[int, int]
    resized: tuple[int, int]


@dataclass(frozen=True)
class _Prompt:
    """Up to `BOXES_PER_CALL` boxes (n, 4) of one image, in its pixels."""

    request: int
    embedded: _Embedded
    boxes: torch.Tensor


class PromptableSegmenter:
    """A loaded segmenter: every image is embedded once, whatever the number of its boxes."""

    def __init__(self, options: SegmenterOptions, model: Any, processor: Any, batch: HasBatch) -> None:
        self._options, self._model, self._processor, self._batch = options, model, processor, batch
        self._kind = type(model).__name__
        self._at_once = 1 if self._kind in _ONE_BY_ONE else batch.batch_size

    def segment(self, requests: Sequence[SegmentRequest]) -> list[Segments]:
        """Return one outline per box; images without boxes are not embedded. Raises OutOfMemory."""
        wanted = [place for place, request in enumerate(requests) if len(request.boxes)]
        prompts: list[_Prompt] = []
        images = [requests[place].image for place in wanted]
        for chosen, batch in fixed_batches(images, self._at_once, lambda image: image.shape):
            for number, embedded in zip(
                chosen, run_batch(self._embed, self._prepared(batch), self._options, self._batch), strict=False
            ):
                boxes = torch.from_numpy(requests[wanted[number]].boxes)
                prompts += [_Prompt(wanted[number], embedded, part) for part in torch.split(boxes, BOXES_PER_CALL)]
        parts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {place: [] for place in wanted}
        for chosen, together in fixed_batches(prompts, self._at_once, lambda prompt: prompt.embedded.size):
            decoded = run_batch(partial(self._decode, wanted=len(chosen)), together, self._options, self._batch)
            for number, part in zip(chosen, decoded, strict=True):
                parts[prompts[number].request].append(part)
        return [_joined(request.image, parts.get(place, [])) for place, request in enumerate(requests)]

    def segment_parts(self, request: SegmentRequest) -> Iterator[Segments]:
        """Yield the outlines of one image, some boxes at a time: the same as `segment`, with less memory."""
        if not len(request.boxes):
            return
        ((_, batch),) = fixed_batches([request.image], self._at_once, lambda image: image.shape)
        embedded = run_batch(self._embed, self._prepared(batch), self._options, self._batch)[0]
        prompts = [
            _Prompt(0, embedded, part) for part in torch.split(torch.from_numpy(request.boxes), BOXES_PER_CALL)
        ]
        for chosen, together in fixed_batches(prompts, self._at_once, lambda prompt: prompt.embedded.size):
            yield _joined(
                request.image,
                run_batch(partial(self._decode, wanted=len(chosen)), together, self._options, self._batch),
            )

    def _prepared(self, images: Sequence[Image]) -> list[_Prepared]:
        inputs = self._processor.image_processor(images=list(images), return_tensors="pt")
        pixels = inputs["pixel_values"].to(weights_dtype(self._options))
        # SAM 2 stretches every image to its square.
        resized = inputs.get("reshaped_input_sizes", torch.tensor([pixels.shape[-2:]] * len(images))).tolist()
        return [
            _Prepared(values, image.shape[:2], (height, width))
            for values, image, (height, width) in zip(pixels, images, resized, strict=True)
        ]

    def _embed(self, images: Sequence[_Prepared]) -> list[_Embedded]:
        given = self._model.get_image_embeddings(
            torch.stack([image.pixels.to(self._options.device) for image in images])
        )
        match self._kind:
            case "SamHQModel":
                maps = [given[0], given[1][0]]
            case "SamModel":
                maps = [given]
            case _:
                maps = given
        return [
            _Embedded(tuple(values[row] for values in maps), image.size, image.resized)
            for row, image in enumerate(images)
        ]

    def _decode(self, prompts: Sequence[_Prompt], wanted: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return logits (n, height, width) and qualities (n,) of the first ``wanted`` prompts, float32 on the CPU.

        The logits of the others, which are padding, are neither resized nor copied from the device.
        """
        maps = [torch.stack(values) for values in zip(*(prompt.embedded.maps for prompt in prompts), strict=True)]
        boxes = torch.stack([_model_boxes(prompt) for prompt in prompts]).to(self._options.device)
        more: dict[str, Any] = {}
        match self._kind:
            case "SamHQModel":
                more = {"image_embeddings": maps[0], "intermediate_embeddings": [maps[1]]}
            case "SamModel":
                more = {"image_embeddings": maps[0]}
            case _:
                more = {"image_embeddings": maps}
        output = self._model(input_boxes=boxes, multimask_output=False, **more)
        logits = self._processor.image_processor.post_process_masks(
            list(output.pred_masks[:wanted].float()),
            original_sizes=[list(prompt.embedded.size) for prompt in prompts[:wanted]],
            reshaped_input_sizes=[list(prompt.embedded.resized) for prompt in prompts[:wanted]],
            binarize=False,
        )
        qualities = output.iou_scores[:wanted].float()
        return [
            (values[: len(prompt.boxes), 0].cpu(), quality[: len(prompt.boxes), 0].cpu())
            for prompt, values, quality in zip(prompts[:wanted], logits, qualities, strict=True)
        ]


def _model_boxes(prompt: _Prompt) -> torch.Tensor:
    """Return boxes (`BOXES_PER_CALL`, 4) in pixels of the resized image, padded with the last box."""
    (height, width), (new_height, new_width) = prompt.embedded.size, prompt.embedded.resized
    scale = torch.tensor([new_width / width, new_height / height] * 2)
    boxes = prompt.boxes * scale
    return torch.cat([boxes, boxes[-1:].expand(BOXES_PER_CALL - len(boxes), 4)])


def _joined(image: Image, parts: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> Segments:
    if not parts:
        return Segments(logits=np.zeros((0, *image.shape[:2]), np.float32), quality=np.zeros(0, np.float32))
    return Segments(
        logits=torch.cat([logits for logits, _ in parts]).numpy(),
        quality=torch.cat([quality for _, quality in parts]).numpy(),
    )


def load_segmenter(options: SegmenterOptions, folder: Path, batch: HasBatch) -> PromptableSegmenter:
    """Load a segmenter.

    Args: folder: holds the weights. Raises BackendError that says what does not fit.
    """
    prepare_device(options.device, options.cpu_threads, "segmenter.options.device")
    where = f"segmenter.options.model: {options.model}"
    refuse_unknown_class(AutoConfig, options, folder, where, _KNOWN)
    model = load_pretrained(AutoModelForMaskGeneration, options, folder, where)
    compile_encoder(model.vision_encoder, options)
    return PromptableSegmenter(options, model, load_pretrained(AutoProcessor, options, folder, where), batch)
