"""GroundingDINO as its authors released it: groundingdino-py, a Python file of settings, a ``.pth``. Imports torch.

groundingdino-py 0.4 drives BERT through methods that transformers 5 no longer has; `_Bert` stands in for its wrapper
while a model is built, with the same names of parameters.
"""

import ast
import contextlib
import io
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import magicseg.vision.yapf_shim  # noqa: F401

# isort: split
import groundingdino.datasets.transforms as transforms
import PIL.Image
import torch
from groundingdino.models.GroundingDINO import groundingdino as library
from groundingdino.util.misc import clean_state_dict
from groundingdino.util.slconfig import SLConfig
from transformers import AutoTokenizer, BertConfig, BertModel
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from magicseg.backends import Detections, DetectRequest
from magicseg.core.devices import prepare_device
from magicseg.core.errors import BackendError
from magicseg.labels import Label
from magicseg.vision.batches import HasBatch, fixed_batches
from magicseg.vision.grounding_captions import detection_names
from magicseg.vision.inference import read_checkpoint, run_batch, to_device, tokenizer_turn
from magicseg.vision.model_options import OriginalDetectorOptions
from magicseg.vision.transformers_detector import (
    Candidates,
    ImageQuery,
    PreparedQuery,
    captions_of,
    grounded,
    merged,
    refuse_alike_names,
)
from magicseg.weights.pretrained import from_pretrained

_SHIPPED = {"swin-t": "GroundingDINO_SwinT_OGC.py", "swin-b": "GroundingDINO_SwinB_cfg.py"}
# The library's preprocessing: ImageNet's statistics.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class _Bert(torch.nn.Module):
    """BERT's parts, called with an attention mask (B, tokens, tokens), true where a token sees another."""

    def __init__(self, bert_model: Any) -> None:
        super().__init__()
        self.config = bert_model.config
        self.embeddings, self.encoder, self.pooler = bert_model.embeddings, bert_model.encoder, bert_model.pooler

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        position_ids: torch.Tensor,
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids)
        hidden_from = ~attention_mask.bool()[:, None] * torch.finfo(hidden.dtype).min
        return BaseModelOutputWithPoolingAndCrossAttentions(
            last_hidden_state=self.encoder(hidden, attention_mask=hidden_from)[0]
        )


class _PaddedTokenizer:
    """A tokenizer that always pads to one length, so that results do not depend on the neighbours."""

    def __init__(self, tokenizer: Any, length: int) -> None:
        self._tokenizer, self._length = tokenizer, length

    def __call__(self, captions: Sequence[str], **_: Any) -> Any:
        with tokenizer_turn:
            return self._tokenizer(
                list(captions),
                padding="max_length",
                max_length=self._length,
                return_token_type_ids=True,
                return_tensors="pt",
            )


class OriginalGroundingDino:
    """A loaded model: images and labels to candidates, always ``batch_size`` rows per call."""

    def __init__(self, options: OriginalDetectorOptions, model: Any, tokenizer: Any, batch: HasBatch) -> None:
        self._options, self._model, self._tokenizer, self._batch = options, model, tokenizer, batch
        model.tokenizer = _PaddedTokenizer(tokenizer, options.text_length)
        self._prepare = transforms.Compose(
            [
                transforms.RandomResize([options.shortest_edge], max_size=options.longest_edge),
                transforms.ToTensor(),
                transforms.Normalize(_MEAN, _STD),
            ]
        )

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return all candidates of every image.

        Raises BackendError if memory does not suffice, or a label is too long.
        """
        with tokenizer_turn:
            rows = [
                ImageQuery(place, request.image, caption.places, caption)
                for place, request in enumerate(requests)
                for caption in captions_of(request.labels, self._fits)
            ]
        found: dict[int, list[tuple[ImageQuery, Candidates]]] = {place: [] for place in range(len(requests))}
        for chosen, batch in fixed_batches(rows, self._batch.batch_size, lambda row: row.image.shape):
            results = run_batch(self._call, self._prepared(batch), self._options, self._batch)
            for place, result in zip(chosen, results, strict=False):  # the rest is padding
                found[rows[place].request].append((rows[place], result))
        return [merged(request, found[place]) for place, request in enumerate(requests)]

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if the model cannot query one of these labels."""
        for label in labels:
            captions_of((label,), self._fits)
        refuse_alike_names(detection_names(labels), self._tokenizer)

    def _fits(self, text: str) -> bool:
        return len(self._tokenizer(text)["input_ids"]) <= self._options.text_length

    def _prepared(self, rows: Sequence[ImageQuery]) -> list[PreparedQuery]:
        return [
            PreparedQuery(row, {"samples": self._prepare(PIL.Image.fromarray(row.image), None)[0]}) for row in rows
        ]

    def _call(self, rows: Sequence[PreparedQuery]) -> list[Candidates]:
        pixels = torch.stack([row.pixels["samples"].to(self._options.device) for row in rows])
        queries = [row.query for row in rows]
        captions = [query.text.text for query in queries]
        output = self._model(pixels, captions=captions)
        with tokenizer_turn:
            offsets = self._tokenizer(captions, return_offsets_mapping=True)["offset_mapping"]
        return [
            grounded(logits, boxes, query.text, offsets_of_row, query.image)
            for logits, boxes, query, offsets_of_row in zip(
                output["pred_logits"].sigmoid(), output["pred_boxes"], queries, offsets, strict=True
            )
        ]


def load_original_detector(
    options: OriginalDetectorOptions, checkpoint: Path, text_encoder: Path, batch: HasBatch
) -> OriginalGroundingDino:
    """Load a detector from a ``.pth``.

    Args: text_encoder: a folder with BERT's tokenizer and config.json.
    Raises BackendError that says what does not fit.
    """
    prepare_device(options.device, options.cpu_threads, "detector.options.device")
    training_only = {"use_checkpoint": False, "use_transformer_ckpt": False}
    settings = SLConfig(read_settings(options.config) | training_only | {"device": options.device})
    if options.text_length > settings.max_text_len:
        raise BackendError(
            f"detector.options.text_length is {options.text_length}, but the model takes {settings.max_text_len}",
            hint=f"set it to {settings.max_text_len} or less",
        )
    try:
        tokenizer = from_pretrained(AutoTokenizer, text_encoder)
        bert = BertModel(BertConfig.from_json_file(text_encoder / "config.json"))
    except Exception as error:  # the library raises whatever its parsers raise
        raise BackendError(
            f"detector.options.text_encoder: {text_encoder} holds no BERT: {type(error).__name__}: {error}",
            hint="it needs config.json and tokenizer.json or vocab.txt of bert-base-uncased",
        ) from error
    try:
        with _with_bert(tokenizer, bert):
            model = library.build_groundingdino(settings)
    except Exception as error:  # the library checks by assertions
        raise BackendError(
            f"detector.options.config: {options.config} builds no model: {type(error).__name__}: {error}",
            hint="set it to swin-t or swin-b, or to the configuration that came with the checkpoint",
        ) from error
    where = f"detector.options: {checkpoint}"
    weights = read_checkpoint(checkpoint, where)
    read_into(model, clean_state_dict(weights.get("model", weights)), where)
    return OriginalGroundingDino(options, to_device(model, options, where), tokenizer, batch)


def read_into(model: torch.nn.Module, weights: Any, where: str) -> None:
    """Load a state dict. Extra tensors are ignored. Raises BackendError if a tensor of the model is missing."""
    try:
        lacking = model.load_state_dict(weights, strict=False).missing_keys
    except (RuntimeError, AttributeError, TypeError) as error:
        raise BackendError(
            f"{where} is of another architecture: {str(error).splitlines()[1:2] or error}",
            hint="check which architecture the checkpoint is of",
        ) from error
    if lacking:
        raise BackendError(
            f"{where} lacks {len(lacking)} tensors of the model, such as {min(lacking)}",
            hint="check which architecture the checkpoint is of",
        )


def read_settings(config: str) -> dict[str, Any]:
    """Read the library's settings from a file of Python assignments. Only literal values are read; no code is run.

    Raises BackendError if the file cannot be read, or holds other values.
    """
    if config in _SHIPPED:
        text = files("groundingdino.config").joinpath(_SHIPPED[config]).read_text(encoding="utf-8")
    else:
        try:
            text = Path(config).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BackendError(
                f"detector.options.config: {config} cannot be read: {error}", hint="swin-t, swin-b, or a file"
            ) from None
    try:
        settings = {
            target.id: ast.literal_eval(statement.value)
            for statement in ast.parse(text).body
            if isinstance(statement, ast.Assign)
            for target in statement.targets
            if isinstance(target, ast.Name)
        }
    except (SyntaxError, ValueError) as error:
        raise BackendError(
            f"detector.options.config: {config} is not a list of plain values: {error}", hint="swin-t, or swin-b"
        ) from None
    return read_settings("swin-t") | settings if config not in _SHIPPED else settings


@contextlib.contextmanager
def _with_bert(tokenizer: Any, bert: Any) -> Iterator[None]:
    """Make the library use ``bert`` instead of downloading one."""
    loader = library.get_tokenlizer
    before = (library.BertModelWarper, loader.get_tokenlizer, loader.get_pretrained_language_model)
    library.BertModelWarper = _Bert
    loader.get_tokenlizer = lambda _: tokenizer
    loader.get_pretrained_language_model = lambda _: bert
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        library.BertModelWarper, loader.get_tokenlizer, loader.get_pretrained_language_model = before
