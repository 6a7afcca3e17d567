"""Zero-shot CLIP as a detector of whole images: how well does a label describe the image? Imports torch."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from magicseg.backends import Detections, DetectRequest
from magicseg.config.model import OpenClipSettings
from magicseg.core.devices import prepare_device
from magicseg.labels import Label
from magicseg.labels.distinct import refuse_alike
from magicseg.model.open_clip_encoder import OpenClipEncoder, open_clip_encoder
from magicseg.model.prompts import encode_with_prompts
from magicseg.vision.batches import HasBatch, fixed_batches
from magicseg.vision.inference import run_batch, to_device
from magicseg.vision.model_options import ClipOptions


class ClipScorer:
    """A loaded CLIP. A label's box is the whole image.

    Its score is its share in the softmax, at CLIP's own temperature, over itself and ``options.against`` without the
    labels of the request.
    """

    def __init__(self, options: ClipOptions, batch: HasBatch) -> None:
        """Load the model. Raises BackendError if its weights cannot be loaded."""
        prepare_device(options.device, options.cpu_threads, "detector.options.device")
        encoder = options.settings.encoder
        assert isinstance(encoder, OpenClipSettings)
        self._encoder: OpenClipEncoder = open_clip_encoder(encoder)
        to_device(self._encoder, options, f"detector.options.model: {options.model}")
        self._templates = options.settings.templates
        self._options, self._batch = options, batch
        self._scale = float(self._encoder.clip.get_parameter("logit_scale").detach().exp())
        self._texts: dict[str, torch.Tensor] = {}

    def check_labels(self, labels: Sequence[Label]) -> None:
        """Raise BackendError if CLIP cannot distinguish two texts of labels and ``against``."""
        texts = list(dict.fromkeys([*(label.text for label in labels), *self._options.against]))
        template = self._templates[0]
        tokens = self._encoder.text_tokens([template.replace("{}", text) for text in texts])
        refuse_alike(texts, tokens, "detector clip")

    def detect(self, requests: Sequence[DetectRequest]) -> list[Detections]:
        """Return one box per label. Raises BackendError if memory does not suffice."""
        found: dict[int, torch.Tensor] = {}
        for chosen, rows in fixed_batches(requests, self._batch.batch_size, lambda row: row.image.shape):
            embedded = run_batch(self._embedded, rows, self._options, self._batch)
            found |= dict(zip(chosen, embedded, strict=False))  # the rest is padding
        return [self._scored(request, found[place]) for place, request in enumerate(requests)]

    def _embedded(self, requests: Sequence[DetectRequest]) -> list[torch.Tensor]:
        pixels = torch.from_numpy(np.stack([request.image for request in requests])).permute(0, 3, 1, 2)
        side = self._encoder.image_size
        if pixels.shape[-2:] != side:
            resized = F.interpolate(pixels.float(), size=side, mode="bicubic", antialias=True, align_corners=False)
            pixels = resized.round().clamp(0, 255).to(torch.uint8)
        tokens = encode_with_prompts(self._encoder, pixels.to(self._options.device), None)
        return list(F.normalize(tokens[:, 0].float(), dim=-1).cpu())

    def _scored(self, request: DetectRequest, image: torch.Tensor) -> Detections:
        height, width = request.image.shape[:2]
        names = [label.text for label in request.labels]
        rivals = [text for text in self._options.against if text not in names]
        scores = np.zeros((len(names), len(names)), np.float32)
        for place, name in enumerate(names):
            texts = torch.stack([self._text(text) for text in (name, *rivals)])
            scores[place, place] = float((self._scale * texts @ image).softmax(dim=0)[0])
        return Detections(
            boxes=np.tile(np.array([0, 0, width, height], np.float32), (len(names), 1)),
            confidence=scores.max(axis=1, initial=0),
            scores=scores,
        )

    @torch.inference_mode()
    def _text(self, name: str) -> torch.Tensor:
        """Return the unit embedding of a name: the mean over the templates of ``options.class_prompt``."""
        if name not in self._texts:
            texts = self._encoder.encode_text([template.replace("{}", name) for template in self._templates])
            self._texts[name] = F.normalize(F.normalize(texts.float(), dim=-1).mean(0), dim=-1).cpu()
        return self._texts[name]
