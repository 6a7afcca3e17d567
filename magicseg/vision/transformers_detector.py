"""Open-vocabulary detectors of the transformers library. Imports torch."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

from magicseg.backends import Detections, DetectRequest, Image
from magicseg.core.devices import prepare_device
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.labels.distinct import known_tokens, refuse_alike, refuse_unknown
from magicseg.vision.batches import HasBatch, fixed_batches
from magicseg.vision.grounding_captions import GroundedCaption, detection_names, grounded_captions, tokens_of_spans
from magicseg.vision.inference import (
    compile_encoder,
    load_pretrained,
    refuse_unknown_class,
    run_batch,
    tokenizer_turn,
    weights_dtype,
)
from magicseg.vision.model_options import DetectorOptions

# The names of the modules that encode images.
_GROUNDED = {
    "GroundingDinoForObjectDetection": "model.backbone.conv_encoder",
    "MMGroundingDinoForObjectDetection": "model.backbone.conv_encoder",
}
_QUERIED = {"Owlv2ForObjectDetection": "owlv2.vision_model", "OwlViTForObjectDetection": "owlvit.vision_model"}
_QUERIES = 8  # labels per image in one call of an OWL model


@dataclass(frozen=True)
class ImageQuery:
    """One row of a batch: an image and some of its request's labels, at ``places`` among them."""

    request: int
    image: Image
    places: tuple[int, ...]
    text: Any


@dataclass(frozen=True)
class PreparedQuery:
    """A row and its image as the model takes it, on the CPU: arguments of its ``forward``, without the batch."""

    query: ImageQuery
    pixels: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Candidates:
    """The model's answer to a row: boxes (B, 4) in pixels, confidence (B,), scores (B, labels of the row)."""

    boxes: torch.Tensor
    confidence: torch.Tensor
    scores: torch.Tensor


class ZeroShotDetector(ABC):
    """A loaded detector: images and labels to candidates, always ``batch_size`` rows per call."""

    def __init__(self, options: DetectorOptions, model: Any, processor: Any, batch: HasBatch) -> None:
        self._options, self._model, self._processor, self._batch = options, model, processor, batch

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return all candidates of every image.

        Raises BackendError if memory does not suffice, or a label is too long.
        """
        with tokenizer_turn:
            rows = [row for place, request in enumerate(requests) for row in self._rows(place, request)]
        found: dict[int, list[tuple[ImageQuery, Candidates]]] = {place: [] for place in range(len(requests))}
        for chosen, batch in fixed_batches(rows, self._batch.batch_size, lambda row: row.image.shape):
            results = run_batch(self._call, self._prepared(batch), self._options, self._batch)
            for place, result in zip(chosen, results, strict=False):  # the rest is padding
                found[rows[place].request].append((rows[place], result))
        return [merged(request, found[place]) for place, request in enumerate(requests)]

    @abstractmethod
    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the model cannot query one of these labels."""

    @abstractmethod
    def _rows(self, place: int, request: DetectRequest) -> list[ImageQuery]:
        """Return the rows that a request needs: its labels may take several."""

    @abstractmethod
    def _call(self, rows: Sequence[PreparedQuery]) -> list[Candidates]:
        """Call the model once, with ``batch_size`` rows."""

    def _prepared(self, rows: Sequence[ImageQuery]) -> list[PreparedQuery]:
        pixels = self._processor.image_processor(images=[row.image for row in rows], return_tensors="pt")
        pixels = pixels.to("cpu", weights_dtype(self._options))
        return [
            PreparedQuery(row, {name: values[place] for name, values in pixels.items()})
            for place, row in enumerate(rows)
        ]

    def _on_device(self, rows: Sequence[PreparedQuery]) -> dict[str, torch.Tensor]:
        return {
            name: torch.stack([row.pixels[name].to(self._options.device) for row in rows]) for name in rows[0].pixels
        }


def refuse_alike_names(names: Sequence[str], tokenizer: Any) -> None:
    """Raise BackendError if a name has only unknown tokens, or two names have the same tokens."""
    unknown = tokenizer.unk_token_id if tokenizer.unk_token_id != tokenizer.eos_token_id else None
    special = set(tokenizer.all_special_ids) - {unknown}
    meanings = [known_tokens(tokenizer(name)["input_ids"], unknown=unknown, special=tuple(special)) for name in names]
    refuse_unknown(names, meanings, unknown, "the detector")
    refuse_alike(names, meanings, "the detector")


def merged(request: DetectRequest, found: Sequence[tuple[ImageQuery, Candidates]]) -> Detections:
    """Return the candidates of all rows of a request, clipped to its image. Labels that a row lacks score 0."""
    height, width = request.image.shape[:2]
    boxes, confidence, scores = [], [], []
    for row, result in found:
        boxes.append(result.boxes.float().cpu().numpy())
        confidence.append(result.confidence.float().cpu().numpy())
        wide = np.zeros((len(result.boxes), len(request.labels)), np.float32)
        wide[:, list(row.places)] = result.scores.float().cpu().numpy()
        scores.append(wide)
    limits = np.array([width, height, width, height], np.float32)
    return Detections(
        boxes=np.clip(np.concatenate(boxes), 0, limits).astype(np.float32),
        confidence=np.concatenate(confidence),
        scores=np.concatenate(scores),
    )


class GroundedDetector(ZeroShotDetector):
    """GroundingDINO: one caption names all labels; every box has a score per token."""

    def check_labels(self, labels: Sequence[Label]) -> None:
        for label in labels:
            captions_of((label,), self._fits)
        refuse_alike_names(detection_names(labels), self._processor.tokenizer)

    def _fits(self, text: str) -> bool:
        return len(self._processor.tokenizer(text)["input_ids"]) <= self._options.text_length

    def _rows(self, place: int, request: DetectRequest) -> list[ImageQuery]:
        captions = captions_of(request.labels, self._fits)
        return [ImageQuery(place, request.image, caption.places, caption) for caption in captions]

    def _call(self, rows: Sequence[PreparedQuery]) -> list[Candidates]:
        queries = [row.query for row in rows]
        with tokenizer_turn:
            tokens = self._processor.tokenizer(
                [query.text.text for query in queries],
                padding="max_length",
                max_length=self._options.text_length,
                return_offsets_mapping=True,
                return_token_type_ids=True,
                return_tensors="pt",
            )
        offsets = tokens.pop("offset_mapping").tolist()
        output = self._model(**self._on_device(rows), **tokens.to(self._options.device))
        return [
            grounded(logits, boxes, query.text, tokens_of_row, query.image)
            for logits, boxes, query, tokens_of_row in zip(
                output.logits.float().sigmoid(), output.pred_boxes.float(), queries, offsets, strict=True
            )
        ]


def captions_of(labels: Sequence[Label], fits: Callable[[str], bool]) -> list[GroundedCaption]:
    """Return captions that name all labels. Raises BackendError for a label that does not fit one."""
    try:
        return grounded_captions(detection_names(labels), fits)
    except ValueError as error:
        raise BackendError(
            f"detector: {error}", hint="shorten it in the list of labels, or raise text_length"
        ) from None


def grounded(
    probabilities: torch.Tensor,
    boxes: torch.Tensor,
    caption: GroundedCaption,
    offsets: Sequence[tuple[int, int]],
    image: Image,
) -> Candidates:
    """Read scores from tokens: a label's is the greatest of its tokens, a box's confidence the greatest of all.

    Args: probabilities: (boxes, tokens), 0 to 1. boxes: (boxes, 4), centre and size as shares of the image.
    """
    scores = torch.stack(
        [
            probabilities[:, tokens].amax(dim=1) if tokens else probabilities.new_zeros(len(probabilities))
            for tokens in tokens_of_spans(offsets, caption.spans)
        ],
        dim=1,
    )
    height, width = image.shape[:2]
    return Candidates(corners(boxes, width, height), probabilities.amax(dim=1), scores)


def corners(boxes: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """Convert boxes (B, 4) from centre and size, as shares, to left, top, right, bottom in pixels."""
    x, y, w, h = boxes.unbind(-1)
    scale = boxes.new_tensor([width, height, width, height])
    return torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1) * scale


class QueriedDetector(ZeroShotDetector):
    """OWL-ViT and OWLv2: every label is a separate query, "a photo of a cat"."""

    def check_labels(self, labels: Sequence[Label]) -> None:
        limit = int(self._model.config.text_config.max_position_embeddings)
        for name in detection_names(labels):
            if len(self._processor.tokenizer(_query(name))["input_ids"]) > limit:
                raise BackendError(
                    f"detector: label {name!r} alone is longer than the text encoder takes",
                    hint="shorten it in the list of labels",
                )
        refuse_alike_names(detection_names(labels), self._processor.tokenizer)

    def _rows(self, place: int, request: DetectRequest) -> list[ImageQuery]:
        self.check_labels(request.labels)
        names = detection_names(request.labels)
        chunks = [range(start, min(start + _QUERIES, len(names))) for start in range(0, len(names), _QUERIES)]
        return [
            ImageQuery(place, request.image, tuple(chunk), [_query(names[place]) for place in chunk])
            for chunk in chunks
        ]

    def _call(self, rows: Sequence[PreparedQuery]) -> list[Candidates]:
        tokenizer = self._processor.tokenizer
        limit = int(self._model.config.text_config.max_position_embeddings)
        queries = [row.query for row in rows]
        texts = [text for query in queries for text in [*query.text, *[""] * (_QUERIES - len(query.text))]]
        with tokenizer_turn:
            tokens = tokenizer(texts, padding="max_length", max_length=limit, return_tensors="pt")
        pixels = self._on_device(rows)["pixel_values"]
        output = self._model(pixel_values=pixels, **tokens.to(self._options.device))
        found = []
        for query, logits, boxes in zip(queries, output.logits.float(), output.pred_boxes.float(), strict=True):
            scores = logits[:, : len(query.text)].sigmoid()
            height, width = query.image.shape[:2]
            if type(self._model).__name__.startswith("Owlv2"):  # its input is a square with the image in a corner
                height = width = max(height, width)
            found.append(Candidates(corners(boxes, width, height), scores.amax(dim=1), scores))
        return found


def _query(name: str) -> str:
    return f"a photo of a {name}"


def load_detector(options: DetectorOptions, folder: Path, batch: HasBatch) -> ZeroShotDetector:
    """Load a detector.

    Args: folder: holds the weights. Raises BackendError that says what does not fit.
    """
    from magicseg.vision import omdet_detector as omdet

    prepare_device(options.device, options.cpu_threads, "detector.options.device")
    where = f"detector.options.model: {options.model}"
    encoders = _GROUNDED | _QUERIED | {omdet.CLASS: omdet.ENCODER}
    kind = refuse_unknown_class(AutoConfig, options, folder, where, tuple(encoders))
    model = load_pretrained(AutoModelForZeroShotObjectDetection, options, folder, where)
    compile_encoder(model.get_submodule(encoders[kind]), options)
    processor = load_pretrained(AutoProcessor, options, folder, where)
    if kind == omdet.CLASS:
        return omdet.OmDetDetector(options, model, processor, batch)
    if kind in _QUERIED:
        return QueriedDetector(options, model, processor, batch)
    limit = int(model.config.max_text_len)
    if options.text_length > limit:
        raise BackendError(
            f"detector.options.text_length is {options.text_length}, but {options.model} takes {limit} tokens",
            hint=f"set it to {limit} or less",
        )
    return GroundedDetector(options, model, processor, batch)
