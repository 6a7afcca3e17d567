"""Keep the text encoders' outputs of the negative prompt, which is the same in every batch. Imports torch."""

import functools
from collections import OrderedDict
from typing import Any

import torch

_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
_KEPT = 2  # with one row in a batch, the caption is kept beside the negative prompt


def keep_repeated_texts(pipe: Any) -> None:
    """Have each text encoder of the pipeline encode a batch of one repeated text once.

    The kept output comes from a batch of the same size, so its bits are those that a new computation would have.
    Captions differ within a batch and are not kept.
    """
    for name in _ENCODERS:
        encoder = getattr(pipe, name, None)
        if encoder is not None:
            encoder.forward = _kept(encoder.forward)


def _kept(forward: Any) -> Any:
    outputs: OrderedDict[object, Any] = OrderedDict()

    @functools.wraps(forward)
    def encode(*arguments: Any, **named: Any) -> Any:
        key = _key([*arguments, *(value for _, value in sorted(named.items()))], tuple(sorted(named)))
        if key is None:
            return forward(*arguments, **named)
        if key not in outputs:
            outputs[key] = forward(*arguments, **named)
            if len(outputs) > _KEPT:
                outputs.popitem(last=False)
        outputs.move_to_end(key)
        return outputs[key]

    return encode


def _key(values: list[Any], names: tuple[str, ...]) -> object | None:
    """Return what identifies a call, or None if the rows of a tensor differ or an argument is of another kind."""
    parts: list[object] = [names]
    for value in values:
        if isinstance(value, torch.Tensor):
            if value.ndim != 2 or not bool((value == value[:1]).all()):
                return None
            parts.append((tuple(value.shape), str(value.device), tuple(value[0].tolist())))
        elif value is None or isinstance(value, bool | int):
            parts.append(value)
        else:
            return None
    return tuple(parts)
