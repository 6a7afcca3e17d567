"""The logits of a whole image, for small ones."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from magicseg.model.sliding_window import HeadLogits, logit_stripes


def slide(head_logits: HeadLogits, image: NDArray[np.uint8], **arguments: Any) -> Tensor:
    """Return the stripes of `logit_stripes`, joined: float32 (K, H, W)."""
    return torch.cat([logits for _, logits in logit_stripes(head_logits, image, **arguments)], dim=1)
