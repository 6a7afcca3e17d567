"""SAM 3 as a detector: a label to all its instances, with boxes, scores and masks, in one step. Imports torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, Sam3Model, Sam3Processor
from transformers.models.sam3.modeling_sam3 import Sam3VisionEncoderOutput

from magicseg.backends import Detections, DetectRequest, Image
from magicseg.core.devices import prepare_device
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch, fixed_batches
from magicseg.vision.grounding_captions import detection_names
from magicseg.vision.inference import (
    compile_encoder,
    load_pretrained,
    refuse_unknown_class,
    run_batch,
    tokenizer_turn,
    weights_dtype,
)
from magicseg.vision.model_options import Sam3Options
from magicseg.vision.transformers_detector import refuse_alike_names

# Classes in a checkpoint's config.json. Of the model for videos the library loads the detector.
_KNOWN = ("Sam3Model", "Sam3VideoModel")


@dataclass(frozen=True)
class _Text:
    """A label's features (tokens, C), and which tokens count (tokens,)."""

    features: torch.Tensor
    mask: torch.Tensor


@dataclass(frozen=True)
class _Query:
    """One row of a batch: an image and one of its request's labels."""

    request: int
    label: int
    size: tuple[int, int]  # height and width of the image in pixels
    maps: tuple[torch.Tensor, ...]  # the image's features (C, h, w) in several sizes
    text: _Text


@dataclass(frozen=True)
class _Found:
    """Candidates of one label, best first: boxes (n, 4) in pixels, scores (n,), masks (n, h, w) above 0 inside."""

    boxes: torch.Tensor
    scores: torch.Tensor
    masks: torch.Tensor


class Sam3Detector:
    """A loaded SAM 3. An image is encoded once for all its labels, and a label once for all images."""

    def __init__(self, options: Sam3Options, model: Any, processor: Any, batch: HasBatch) -> None:
        self._options, self._model, self._processor, self._batch = options, model, processor, batch
        # On a CPU the last bits of a result depend on its place in a batch.
        self._at_once = batch.batch_size if options.device == "cuda" else 1
        self._texts: dict[str, _Text] = {}
        self._positions: tuple[torch.Tensor, ...] = ()  # encodings (1, C, h, w) of all images' maps

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if a label is too long, or two labels have the same tokens."""
        tokenizer = self._processor.tokenizer
        names = detection_names(labels)
        for name in names:
            if len(tokenizer(name)["input_ids"]) > self._text_length:
                raise BackendError(
                    f"detector: label {name!r} is longer than the {self._text_length} tokens that SAM 3 takes",
                    hint="shorten it in the list of labels",
                )
        refuse_alike_names(names, tokenizer)

    @property
    def _text_length(self) -> int:
        return int(self._model.text_encoder.config.max_position_embeddings)

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return the best candidates of every label, with their masks. Raises BackendError, OutOfMemory."""
        texts = {name: self._text(name) for request in requests for name in detection_names(request.labels)}
        maps: dict[int, tuple[torch.Tensor, ...]] = {}
        images = [request.image for request in requests]
        for chosen, batch in fixed_batches(images, self._at_once, lambda image: image.shape):
            embedded = run_batch(self._embed, self._prepared(batch), self._options, self._batch)
            maps |= dict(zip(chosen, embedded, strict=False))  # the rest is padding
        queries = [
            _Query(place, number, request.image.shape[:2], maps[place], texts[name])
            for place, request in enumerate(requests)
            for number, name in enumerate(detection_names(request.labels))
        ]
        found: dict[int, dict[int, _Found]] = {place: {} for place in range(len(requests))}
        for chosen, rows in fixed_batches(queries, self._at_once, lambda query: 0):
            answers = run_batch(self._ask, rows, self._options, self._batch)
            for number, answer in zip(chosen, answers, strict=False):
                found[queries[number].request][queries[number].label] = answer
        return [_merged(request, found[place]) for place, request in enumerate(requests)]

    def _text(self, name: str) -> _Text:
        if name not in self._texts:
            (self._texts[name],) = run_batch(self._encode_text, [name], self._options, self._batch)
        return self._texts[name]

    def _encode_text(self, names: Sequence[str]) -> list[_Text]:
        with tokenizer_turn:
            tokens = self._processor.tokenizer(
                list(names), padding="max_length", max_length=self._text_length, return_tensors="pt"
            ).to(self._options.device)
        features = self._model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output
        return [_Text(*row) for row in zip(features, tokens["attention_mask"], strict=True)]

    def _prepared(self, images: Sequence[Image]) -> list[torch.Tensor]:
        """Return images as the model takes them, on the CPU."""
        pixels = self._processor.image_processor(images=list(images), return_tensors="pt")["pixel_values"]
        return list(pixels.to(weights_dtype(self._options)))

    def _embed(self, images: Sequence[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
        output = self._model.get_vision_features(torch.stack(list(images)).to(self._options.device))
        if not self._positions:
            self._positions = tuple(values[:1].clone() for values in output.fpn_position_encoding)
        return [tuple(values[row] for values in output.fpn_hidden_states) for row in range(len(images))]

    def _ask(self, queries: Sequence[_Query]) -> list[_Found]:
        maps = tuple(torch.stack(level) for level in zip(*(query.maps for query in queries), strict=True))
        positions = tuple(values.expand(len(queries), -1, -1, -1) for values in self._positions)
        output = self._model(
            vision_embeds=Sam3VisionEncoderOutput(fpn_hidden_states=maps, fpn_position_encoding=positions),
            text_embeds=SimpleNamespace(pooler_output=torch.stack([query.text.features for query in queries])),
            attention_mask=torch.stack([query.text.mask for query in queries]),
        )
        return [self._best(output, row, query.size) for row, query in enumerate(queries)]

    def _best(self, output: Any, row: int, size: tuple[int, int]) -> _Found:
        """Return a row's best candidates, on the CPU. The score is the query's times the label's presence."""
        scores = output.pred_logits[row].float().sigmoid() * output.presence_logits[row].float().sigmoid()
        best = scores.argsort(descending=True, stable=True)[: self._options.candidates]
        height, width = size
        scale = scores.new_tensor([width, height, width, height])
        return _Found(
            (output.pred_boxes[row, best].float() * scale).cpu(),
            scores[best].cpu(),
            # The library resizes probabilities, and cuts at a half.
            (output.pred_masks[row, best].float().sigmoid() - 0.5).cpu(),
        )


def _merged(request: DetectRequest, found: dict[int, _Found]) -> Detections:
    """Return the candidates of all labels of a request, clipped to its image."""
    height, width = request.image.shape[:2]
    parts = [found[number] for number in range(len(request.labels))]
    scores = np.zeros((sum(len(part.scores) for part in parts), len(parts)), np.float32)
    start = 0
    for number, part in enumerate(parts):
        scores[start : start + len(part.scores), number] = part.scores.numpy()
        start += len(part.scores)
    limits = np.array([width, height, width, height], np.float32)
    return Detections(
        boxes=np.clip(torch.cat([part.boxes for part in parts]).numpy(), 0, limits),
        confidence=scores.max(axis=1, initial=0),
        scores=scores,
        masks=torch.cat([part.masks for part in parts]).numpy(),
    )


def load_sam3(options: Sam3Options, folder: Path, batch: HasBatch) -> Sam3Detector:
    """Load a SAM 3.

    Args: folder: holds the weights. Raises BackendError that says what does not fit.
    """
    prepare_device(options.device, options.cpu_threads, "detector.options.device")
    where = f"detector.options.model: {options.model}"
    refuse_unknown_class(AutoConfig, options, folder, where, _KNOWN)
    model = load_pretrained(Sam3Model, options, folder, where)
    compile_encoder(model.vision_encoder, options)
    return Sam3Detector(options, model, load_pretrained(Sam3Processor, options, folder, where), batch)
