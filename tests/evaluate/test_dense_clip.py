"""Dense zero-shot CLIP as a head, on tiny open_clip models."""

import pytest
import torch
import torch.nn.functional as F

from helpers.tiny_clip import build
from magicseg.config.model import ModelSettings
from magicseg.core.errors import ConfigError
from magicseg.evaluate.heads.dense_clip import DenseClipHead, bank_features
from magicseg.model.decoder import upsample_logits
from magicseg.model.dense_features import DENSE_VARIANTS, dense_last_block
from magicseg.model.segmenter import build_segmenter

IMAGES = torch.randint(0, 256, (2, 3, 24, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def segmenter(name, folder, **changes):
    build(name, folder)
    encoder = {"name": "open-clip", "weights": {"model": str(folder / name)}} | changes
    return build_segmenter(
        ModelSettings(encoder=encoder, decoder_width=16, decoder_heads=2, prompt_tokens=2), seed=0
    ).eval()


@pytest.mark.parametrize("variant", DENSE_VARIANTS)
def test_logits_are_clips_cosines_at_its_temperature(variant, tmp_path):
    model = segmenter("open_clip", tmp_path)
    head = DenseClipHead(model, "sha256:0", variant)
    head.prepare([["cat", "kitten"], ["dog"], ["sky"]])
    logits = upsample_logits(head.logits(IMAGES), IMAGES.shape[-2:])
    assert (logits.shape, logits.dtype) == ((2, 3, 24, 40), torch.float32)
    visual = model.encoder.clip.visual
    with torch.no_grad():
        tokens = model.encoder.embed(IMAGES)
        tokens = dense_last_block(visual.transformer.resblocks[1], visual.transformer.resblocks[0](tokens), variant)
        patches = F.normalize(visual.ln_post(tokens[:, 1:]) @ visual.proj, dim=-1)
        text = model.encode_classes([["cat", "kitten"], ["dog"], ["sky"]])
        grid = (patches @ text.T).transpose(1, 2).reshape(2, 3, 3, 5) * model.encoder.clip.logit_scale.exp()
    expected = F.interpolate(grid, size=(24, 40), mode="bilinear")
    torch.testing.assert_close(logits, expected)
    best = logits[0].argmax(0)
    softmax = logits[0].softmax(0).amax(0)
    torch.testing.assert_close(head.score(logits[0], best, "log-odds").sigmoid(), softmax)
    torch.testing.assert_close(head.score(logits[0], best, "cosine") * head._scale, logits[0].amax(0))


def test_prompts_and_decoder_take_no_part(tmp_path):
    model = segmenter("open_clip", tmp_path)
    head = DenseClipHead(model, "sha256:0", "clearclip")
    head.prepare([["cat"], ["dog"]])
    before = head.logits(IMAGES)
    for parameter in [*model.prompts.parameters(), *model.decoder.parameters()]:
        parameter.data += 1
    assert torch.equal(head.logits(IMAGES), before)


def test_what_cannot_be_made_dense_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="needs a CLIP"):
        DenseClipHead(build_segmenter(ModelSettings(), seed=0), "sha256:0", "sclip")
    with pytest.raises(ConfigError, match="kind of attention"):
        DenseClipHead(segmenter("open_clip_custom_text", tmp_path), "sha256:0", "sclip")


def test_a_frozen_clip_gives_a_bank_dense_features_and_a_tuned_one_its_own(tmp_path):
    frozen = segmenter("open_clip", tmp_path)
    features, name = bank_features(frozen)
    with torch.no_grad():
        assert name["features"] == "clearclip"
        assert not torch.allclose(features(IMAGES), frozen.encode_images(IMAGES)[1], atol=1e-3)
        tuned = segmenter("open_clip_quickgelu", tmp_path, freeze="text")
        features, name = bank_features(tuned)
        assert name["features"] == "trained"
        torch.testing.assert_close(features(IMAGES), tuned.encode_images(IMAGES)[1])
