"""The dense variants of CLIP's last layer against the papers' formulas, written out."""

import pytest
import torch
from open_clip.transformer import ResidualAttentionBlock

from magicseg.model.dense_features import DENSE_VARIANTS, dense_last_block

WIDTH, HEADS = 8, 2


@pytest.fixture
def block():
    torch.manual_seed(0)
    made = ResidualAttentionBlock(WIDTH, HEADS, ls_init_value=0.5)
    for parameter in made.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return made.eval().requires_grad_(False)


def written_out(block, tokens, variant):
    """One image, one head, one token after the other."""
    normal = block.ln_1(tokens)
    weights, biases = block.attn.in_proj_weight.chunk(3), block.attn.in_proj_bias.chunk(3)
    query, key, value = (normal @ weight.T + bias for weight, bias in zip(weights, biases, strict=True))
    side = WIDTH // HEADS
    mixed = torch.zeros_like(tokens)
    for head in range(HEADS):
        part = slice(head * side, (head + 1) * side)
        q, k, v = query[:, part], key[:, part], value[:, part]
        for place in range(len(tokens)):
            rows = {
                "vanilla": [torch.softmax(k @ q[place] / side**0.5, 0)],
                "maskclip": [torch.eye(len(tokens))[place]],
                "sclip": [torch.softmax(q @ q[place] / side**0.5, 0), torch.softmax(k @ k[place] / side**0.5, 0)],
                "clearclip": [torch.softmax(q @ q[place] / side**0.5, 0)],
            }[variant]
            mixed[place, part] = sum(row @ v for row in rows)
    mixed = block.ls_1(block.attn.out_proj(mixed))
    if variant == "clearclip":
        return mixed
    tokens = tokens + mixed
    return tokens + block.ls_2(block.mlp(block.ln_2(tokens)))


@pytest.mark.parametrize("variant", DENSE_VARIANTS)
def test_each_dense_variant_equals_its_formula(block, variant):
    tokens = torch.randn(2, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    found = dense_last_block(block, tokens, variant)
    torch.testing.assert_close(found, torch.stack([written_out(block, each, variant) for each in tokens]))


def test_dense_variants_differ_from_each_other(block):
    tokens = torch.randn(1, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    found = [dense_last_block(block, tokens, variant) for variant in DENSE_VARIANTS]
    assert torch.equal(found[0], block(tokens))
    for place, one in enumerate(found):
        assert not any(torch.allclose(one, other, atol=1e-3) for other in found[place + 1 :])
