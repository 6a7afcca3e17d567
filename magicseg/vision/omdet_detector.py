"""OmDet-Turbo: some labels of an image are queried together, under a task that names them. Imports torch."""

import sys
from collections.abc import Sequence
from typing import Any

import torch

from magicseg.backends import DetectRequest
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch
from magicseg.vision.grounding_captions import detection_names
from magicseg.vision.inference import tokenizer_turn
from magicseg.vision.model_options import DetectorOptions
from magicseg.vision.transformers_detector import (
    Candidates,
    ImageQuery,
    PreparedQuery,
    ZeroShotDetector,
    corners,
    refuse_alike_names,
)

CLASS = "OmDetTurboForObjectDetection"
ENCODER = "vision_backbone"
_QUERIES = 8  # labels per image in one call
_KEPT_TEXTS = 4096  # features of texts on the device, from one call to the next


class OmDetDetector(ZeroShotDetector):
    """OmDet-Turbo. A label has features of its own, and the task "Detect cat, dog." those of all labels of a row."""

    def __init__(self, options: DetectorOptions, model: Any, processor: Any, batch: HasBatch) -> None:
        super().__init__(options, model, processor, batch)
        # The model keeps the features of texts. It would encode those that it lacks together, with bits that depend
        # on how many they are: they are encoded one by one, and none is dropped within a call.
        self._caches = (model.language_cache_class, model.language_cache_prompt)
        for cache in self._caches:
            cache.capacity = sys.maxsize

    @property
    def _text_length(self) -> int:
        return int(self._model.config.text_config.max_position_embeddings)

    def check_labels(self, labels: Sequence[Label]) -> None:
        names = detection_names(labels)
        for name in names:
            if len(self._processor.tokenizer(_task([name]))["input_ids"]) > self._text_length:
                raise BackendError(
                    f"detector: label {name!r} alone is longer than the text encoder takes",
                    hint="shorten it in the list of labels",
                )
        refuse_alike_names(names, self._processor.tokenizer)

    def _rows(self, place: int, request: DetectRequest) -> list[ImageQuery]:
        self.check_labels(request.labels)
        names = detection_names(request.labels)
        rows: list[ImageQuery] = []
        start = 0
        while start < len(names):
            count = min(_QUERIES, len(names) - start)
            while not self._fits(names[start : start + count]):
                count -= 1
            chosen = range(start, start + count)
            rows.append(ImageQuery(place, request.image, tuple(chosen), [names[number] for number in chosen]))
            start += count
        return rows

    def _fits(self, names: Sequence[str]) -> bool:
        return len(self._processor.tokenizer(_task(names))["input_ids"]) <= self._text_length

    def _call(self, rows: Sequence[PreparedQuery]) -> list[Candidates]:
        for cache in self._caches:
            if cache.current_load > _KEPT_TEXTS:
                cache.cache.clear()
                cache.current_load = 0
        queries = [row.query for row in rows]
        classes = [name for query in queries for name in [*query.text, *[""] * (_QUERIES - len(query.text))]]
        class_tokens, task_tokens = self._tokens(classes), self._tokens([_task(query.text) for query in queries])
        for encode, tokens in (
            (self._model.get_cached_class_embeddings, class_tokens),
            (self._model.get_cached_task_embeddings, task_tokens),
        ):
            for number in range(len(tokens["input_ids"])):
                encode(*(tokens[key][number : number + 1] for key in ("input_ids", "attention_mask")))
        output = self._model(
            **self._on_device(rows),
            classes_input_ids=class_tokens["input_ids"],
            classes_attention_mask=class_tokens["attention_mask"],
            tasks_input_ids=task_tokens["input_ids"],
            tasks_attention_mask=task_tokens["attention_mask"],
            classes_structure=torch.full((len(rows),), _QUERIES),
        )
        found = []
        for query, logits, boxes in zip(
            queries, output.decoder_class_logits.float(), output.decoder_coord_logits.float(), strict=True
        ):
            scores = logits[:, : len(query.text)].sigmoid()
            height, width = query.image.shape[:2]
            found.append(Candidates(corners(boxes, width, height), scores.amax(dim=1), scores))
        return found

    def _tokens(self, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        with tokenizer_turn:
            tokens = self._processor.tokenizer(
                list(texts), padding="max_length", max_length=self._text_length, return_tensors="pt"
            )
        return {key: tokens[key].to(self._options.device) for key in ("input_ids", "attention_mask")}


def _task(names: Sequence[str]) -> str:
    return f"Detect {', '.join(names)}."
