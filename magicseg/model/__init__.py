"""The open-vocabulary segmentation model: encoders, deep visual prompts, mask decoder, losses.

Its parts are plain modules and functions of tensors, usable without a run. Importing this package loads no torch;
the first use of a name in ``__all__`` does.

`Segmenter` here is the trained model, a torch module. The protocol `magicseg.backends.Segmenter` is another thing: a
mask stage's back end that outlines boxes.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from magicseg.model.decoder import MaskDecoder, upsample_logits
    from magicseg.model.encoder import Encoder, build_encoder
    from magicseg.model.losses.masks import dice_loss, focal_loss
    from magicseg.model.losses.pairs import counterfactual_loss
    from magicseg.model.open_vocabulary import OpenVocabularyModel, Segmentation, load_model
    from magicseg.model.prompts import DeepPrompts, encode_with_prompts
    from magicseg.model.saved_model import load_segmenter, save_segmenter
    from magicseg.model.segmenter import Segmenter, build_segmenter
    from magicseg.model.targets import sample_targets

_MODULES = {
    "decoder": ("MaskDecoder", "upsample_logits"),
    "encoder": ("Encoder", "build_encoder"),
    "losses.masks": ("dice_loss", "focal_loss"),
    "losses.pairs": ("counterfactual_loss",),
    "open_vocabulary": ("OpenVocabularyModel", "Segmentation", "load_model"),
    "prompts": ("DeepPrompts", "encode_with_prompts"),
    "saved_model": ("load_segmenter", "save_segmenter"),
    "segmenter": ("Segmenter", "build_segmenter"),
    "targets": ("sample_targets",),
}

__all__ = [
    "DeepPrompts",
    "Encoder",
    "MaskDecoder",
    "OpenVocabularyModel",
    "Segmentation",
    "Segmenter",
    "build_encoder",
    "build_segmenter",
    "counterfactual_loss",
    "dice_loss",
    "encode_with_prompts",
    "focal_loss",
    "load_model",
    "load_segmenter",
    "sample_targets",
    "save_segmenter",
    "upsample_logits",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
