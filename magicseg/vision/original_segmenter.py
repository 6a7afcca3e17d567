"""SAM as its authors released it: segment-anything and a ``.pth``. Imports torch."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from segment_anything import sam_model_registry
from segment_anything.utils.transforms import ResizeLongestSide

from magicseg.backends import Image, SegmentRequest, Segments
from magicseg.core.devices import prepare_device
from magicseg.core.errors import BackendError
from magicseg.vision.batches import BOXES_PER_CALL, HasBatch, fixed_batches
from magicseg.vision.inference import compile_encoder, read_checkpoint, run_batch, to_device
from magicseg.vision.model_options import OriginalSegmenterOptions
from magicseg.vision.original_detector import read_into


class OriginalSegmentAnything:
    """A loaded model: images are embedded in batches, the boxes of an image are decoded some at a time."""

    def __init__(self, options: OriginalSegmenterOptions, model: Any, batch: HasBatch) -> None:
        self._options, self._model, self._batch = options, model, batch
        self._transform = ResizeLongestSide(model.image_encoder.img_size)

    def segment(self, requests: Sequence[SegmentRequest]) -> list[Segments]:
        """Return one outline per box; images without boxes are not embedded. Raises OutOfMemory."""
        answers = [
            Segments(logits=np.zeros((0, *request.image.shape[:2]), np.float32), quality=np.zeros(0, np.float32))
            for request in requests
        ]
        wanted = [place for place, request in enumerate(requests) if len(request.boxes)]
        images = [requests[place].image for place in wanted]
        for chosen, batch in fixed_batches(images, self._batch.batch_size, lambda image: image.shape):
            for number, embedding in zip(
                chosen, run_batch(self._embed, self._prepared(batch), self._options, self._batch), strict=False
            ):
                request = requests[wanted[number]]
                parts = [
                    run_batch(self._decode, [(embedding, request.image, boxes)], self._options, self._batch)[0]
                    for boxes in torch.split(torch.from_numpy(request.boxes), BOXES_PER_CALL)
                ]
                answers[wanted[number]] = Segments(
                    logits=np.concatenate([part.logits for part in parts]),
                    quality=np.concatenate([part.quality for part in parts]),
                )
        return answers

    def segment_parts(self, request: SegmentRequest) -> Iterator[Segments]:
        """Yield the outlines of one image, some boxes at a time: the same as `segment`, with less memory."""
        if not len(request.boxes):
            return
        ((_, batch),) = fixed_batches([request.image], self._batch.batch_size, lambda image: image.shape)
        embedding = run_batch(self._embed, self._prepared(batch), self._options, self._batch)[0]
        for boxes in torch.split(torch.from_numpy(request.boxes), BOXES_PER_CALL):
            yield from run_batch(self._decode, [(embedding, request.image, boxes)], self._options, self._batch)

    def _prepared(self, images: Sequence[Image]) -> list[torch.Tensor]:
        return [torch.from_numpy(self._transform.apply_image(image)) for image in images]

    def _embed(self, images: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        pixels = torch.stack([image.to(self._options.device) for image in images])
        inputs = pixels.permute(0, 3, 1, 2).contiguous()
        return list(self._model.image_encoder(self._model.preprocess(inputs)))

    def _decode(self, rows: Sequence[tuple[torch.Tensor, Image, torch.Tensor]]) -> list[Segments]:
        model = self._model
        answers = []
        for embedding, image, pixel_boxes in rows:
            size = image.shape[:2]
            boxes = self._transform.apply_boxes_torch(pixel_boxes, size).to(embedding)
            sparse, dense = model.prompt_encoder(points=None, boxes=boxes, masks=None)
            masks, quality = model.mask_decoder(
                image_embeddings=embedding[None],
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            resized = self._transform.get_preprocess_shape(*size, self._transform.target_length)
            logits = model.postprocess_masks(masks, resized, size)
            answers.append(Segments(logits=logits[:, 0].cpu().numpy(), quality=quality[:, 0].cpu().numpy()))
        return answers


def load_original_segmenter(
    options: OriginalSegmenterOptions, checkpoint: Path, batch: HasBatch
) -> OriginalSegmentAnything:
    """Load a segmenter from a ``.pth``. Raises BackendError that says what does not fit."""
    prepare_device(options.device, options.cpu_threads, "segmenter.options.device")
    if options.architecture not in sam_model_registry:
        raise BackendError(
            f"segmenter.options.architecture is {options.architecture!r}",
            hint=f"it knows {', '.join(sorted(sam_model_registry))}",
        )
    where = f"segmenter.options: {checkpoint}"
    weights = read_checkpoint(checkpoint, where)
    model = sam_model_registry[options.architecture](checkpoint=None)
    read_into(model, weights, where)
    compile_encoder(model.image_encoder, options)
    return OriginalSegmentAnything(options, to_device(model, options, where), batch)
