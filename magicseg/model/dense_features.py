"""Dense features of a CLIP that was trained on whole images, by other attention in its last layer.

CLIP's class token describes the image. Its patch tokens were never trained to describe their patches, and the last
layer's attention mixes them freely. Three published methods need no training, only another last layer:

    vanilla     the layer unchanged
    maskclip    each token attends to itself only: the values, projected (Zhou, Loy and Dai, ECCV 2022,
                arXiv 2112.01071)
    sclip       softmax(q q') + softmax(k k') instead of softmax(q k') (Wang, Mei and Yuille, ECCV 2024,
                arXiv 2312.01597)
    clearclip   softmax(q q'), and neither the residual nor the MLP (Lan et al., ECCV 2024, arXiv 2407.12442)

Scores are divided by the square root of a head's width as in the layer itself. In maskclip and sclip the residual and
the MLP stay. Which variant is best depends on how a CLIP was trained, so the unchanged layer is a variant too.
"""

from typing import Literal, cast, get_args

import torch.nn.functional as F
from torch import Tensor, nn

DenseVariant = Literal["vanilla", "maskclip", "sclip", "clearclip"]
DENSE_VARIANTS: tuple[DenseVariant, ...] = get_args(DenseVariant)


def dense_last_block(block: nn.Module, tokens: Tensor, variant: DenseVariant) -> Tensor:
    """Apply an open_clip ``ResidualAttentionBlock`` with the variant's attention: float (B, N, C) -> same shape."""
    if variant == "vanilla":
        return cast("Tensor", block(tokens))
    mixed: Tensor = block.get_submodule("ls_1")(_attention(block, tokens, variant))
    if variant == "clearclip":
        return mixed
    tokens = tokens + mixed
    mlp, norm, scale = (block.get_submodule(name) for name in ("mlp", "ln_2", "ls_2"))
    changed: Tensor = tokens + scale(mlp(norm(tokens)))
    return changed


def _attention(block: nn.Module, tokens: Tensor, variant: DenseVariant) -> Tensor:
    attention = block.get_submodule("attn")
    assert isinstance(attention, nn.MultiheadAttention)
    batch, count, width = tokens.shape
    heads = attention.num_heads
    assert attention.in_proj_weight is not None
    projected = F.linear(block.get_submodule("ln_1")(tokens), attention.in_proj_weight, attention.in_proj_bias)
    query, key, value = projected.view(batch, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
    if variant == "maskclip":
        mixed = value
    else:
        mixed = F.scaled_dot_product_attention(query, query, value)
        if variant == "sclip":
            mixed = mixed + F.scaled_dot_product_attention(key, key, value)
    out: Tensor = attention.out_proj(mixed.transpose(1, 2).reshape(batch, count, width))
    return out
