"""The model: shapes, prompts, gradients, saving."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from helpers.tiny_models import tiny_settings
from magicseg.config.model import EncoderSettings, ModelSettings
from magicseg.core.errors import ConfigError, DataError
from magicseg.model.encoder import Encoder, MiniatureEncoder, TextEncoder, ngram_buckets
from magicseg.model.losses.masks import focal_loss
from magicseg.model.prompts import DeepPrompts, encode_with_prompts
from magicseg.model.saved_model import load_segmenter, save_segmenter, weights_digest
from magicseg.model.segmenter import build_segmenter

SMALL = tiny_settings(
    prompt_tokens=3, decoder_layers=2, decoder_width=32, decoder_heads=4, width=32, layers=2, embed_dim=24
)


def pictures(count=2, side=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)


@pytest.fixture
def model():
    return build_segmenter(SMALL, seed=0).eval()


def test_the_miniature_encoder_is_an_encoder():
    assert isinstance(MiniatureEncoder(SMALL.encoder), Encoder)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 40), (8, 16)])
def test_images_with_sides_of_any_multiple_of_the_stride_are_segmented(model, height, width):
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    output = model(images, model.encode_classes(["car", "house", "tree"]))
    assert output.logits.shape == (2, 3, height, width)
    assert output.cls.shape == (2, 24)
    torch.testing.assert_close(output.cls.norm(dim=1), torch.ones(2))


def test_images_whose_sides_are_not_multiples_of_the_stride_are_refused(model):
    with pytest.raises(DataError, match="33 x 32"):
        model(torch.zeros(1, 3, 33, 32, dtype=torch.uint8), model.encode_classes(["car"]))


def test_widths_that_heads_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match=r"encoder\.heads"):
        build_segmenter(ModelSettings(encoder=EncoderSettings(width=128, heads=3)), seed=0)
    with pytest.raises(ConfigError, match="decoder_heads"):
        build_segmenter(ModelSettings(decoder_width=100, decoder_heads=8), seed=0)


def test_without_prompts_the_encoder_runs_its_plain_forward_pass(model):
    encoder, images = model.encoder, pictures()
    tokens = encoder.embed(images)
    for layer in range(encoder.layers):
        tokens = encoder.block(layer, tokens)
    expected = encoder.head(tokens)
    none = DeepPrompts(tokens=0, layers=2, width=32, stride=8, dropout=0.1)
    torch.testing.assert_close(encode_with_prompts(encoder, images, None), expected, rtol=0, atol=0)
    torch.testing.assert_close(encode_with_prompts(encoder, images, none), expected)


def test_each_layer_sees_its_own_prompts_between_class_token_and_patches(model):
    class Recorder(nn.Module):
        stride, width, layers, embed_dim = 8, 32, 2, 24
        seen = ()

        def embed(self, images):
            return torch.zeros(len(images), 5, 32)

        def block(self, layer, tokens):
            self.seen = (*self.seen, tokens)
            return tokens + 100

        def head(self, tokens):
            return tokens

        def encode_text(self, texts):
            raise NotImplementedError

    recorder = Recorder()
    with torch.no_grad():
        result = encode_with_prompts(recorder, pictures(), model.prompts)
    assert [tokens.shape for tokens in recorder.seen] == [(2, 8, 32)] * 2
    for layer, tokens in enumerate(recorder.seen):
        torch.testing.assert_close(tokens[:, 1:4], model.prompts(layer, 2))
        assert (tokens[:, [0, 4, 5, 6, 7]] == 100 * layer).all()
    assert result.shape == (2, 5, 32)
    assert (result == 200).all()


def test_prompts_change_the_logits(model):
    plain = encode_with_prompts(model.encoder, pictures(), None)
    assert not torch.allclose(encode_with_prompts(model.encoder, pictures(), model.prompts), plain)


def test_drop_path_keeps_or_skips_whole_layers():
    class Adder(nn.Module):
        stride, width, layers, embed_dim = 8, 4, 2, 4

        def embed(self, images):
            return torch.zeros(len(images), 2, 4)

        def block(self, layer, tokens):
            return tokens + 1

        def head(self, tokens):
            return tokens

        def encode_text(self, texts):
            raise NotImplementedError

    torch.manual_seed(0)
    result = encode_with_prompts(Adder(), pictures(400, 8), None, drop_path=0.5)
    assert set(result.unique().tolist()) == {1.0, 3.0}  # the first layer always, the deepest doubled or not
    assert result.mean().item() == pytest.approx(2, abs=0.2)


def test_a_class_does_not_depend_on_the_other_classes(model):
    both = model(pictures(), model.encode_classes(["car", "house"])).logits
    one = model(pictures(), model.encode_classes(["house"])).logits
    torch.testing.assert_close(both[:, 1:], one, rtol=1e-4, atol=1e-5)


def test_each_image_may_have_its_own_classes(model):
    text = model.encode_classes(["car", "house"])
    per_image = torch.stack([text, text.flip(0)])
    logits = model(pictures(), text).logits
    own = model(pictures(), per_image).logits
    torch.testing.assert_close(own[0], logits[0])
    torch.testing.assert_close(own[1], logits[1].flip(0))


def test_every_layer_of_the_decoder_has_masks_of_its_own(model):
    images, text = pictures(), model.encode_classes(["car", "house"])
    cls, patches = model.encode_images(images)
    upsample = model.upsampler(patches, images)
    layers = [upsample(each) for each in model.decode_on_grid(cls, patches, text, (32, 32), every_layer=True)]
    assert [each.shape for each in layers] == [(2, 2, 32, 32)] * 2
    assert torch.equal(layers[1], model(images, text).logits)
    # The first layer's, head by head.
    layer, decoder = model.decoder.layers[0], model.decoder
    queries = decoder.query(torch.cat([cls[:, None] * text * 24**0.5, text.expand(2, -1, -1)], -1) * 24**0.5)
    memory = decoder.memory(patches)
    query = layer.to_query(layer.norm1(queries)).view(2, 2, 4, 8)
    key = layer.to_key_value(memory)[..., :32].view(2, 16, 4, 8)
    scores = torch.einsum("bkhc,bnhc->bhkn", query, key).mean(1) / 8**0.5
    expected = (scores * decoder.mask.scale + decoder.mask.offset).view(2, 2, 4, 4)
    expected = nn.functional.interpolate(expected, size=(32, 32), mode="bilinear")
    torch.testing.assert_close(layers[0], expected, rtol=1e-4, atol=1e-5)


def test_recomputed_layers_have_the_same_gradients():
    gradients = []
    for checkpoint_activations in (False, True):
        model = build_segmenter(SMALL, seed=0).train()
        model.checkpoint_activations = checkpoint_activations
        calls = []
        block = model.encoder.block
        model.encoder.block = lambda layer, tokens, block=block, calls=calls: (
            calls.append(layer) or block(layer, tokens)
        )
        torch.manual_seed(0)
        model(pictures(), model.encode_classes(["car", "house"])).logits.square().mean().backward()
        assert calls == ([0, 1, 1, 0] if checkpoint_activations else [0, 1])
        gradients.append([value.grad for value in model.parameters()])
    assert all(torch.equal(plain, again) for plain, again in zip(*gradients, strict=True))


def test_every_parameter_learns():
    model = build_segmenter(SMALL, seed=0).train()
    output = model(pictures(), model.encode_classes(["car", "house"]))
    masks = torch.rand(output.logits.shape) < 0.3
    focal_loss(output.logits, masks, torch.ones(2, 1, 32, 32, dtype=torch.bool), alpha=0.25, gamma=2).backward()
    without = [name for name, value in model.named_parameters() if value.grad is None or not value.grad.any()]
    # A bias of keys alone would add the same to all patches; softmax removes it in all but the last layer.
    assert without == []


def test_a_frozen_encoder_keeps_its_weights():
    settings = SMALL.model_copy(update={"encoder": SMALL.encoder.model_copy(update={"freeze": True})})
    model = build_segmenter(settings, seed=0).train()
    before = {name: value.clone() for name, value in model.encoder.state_dict().items()}
    model(pictures(), model.encode_classes(["car"])).logits.sum().backward()
    assert all(value.grad is None for value in model.encoder.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.encoder.state_dict().items())
    assert model.prompts.tokens.grad is not None


def test_fresh_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    digests = [weights_digest(build_segmenter(SMALL, seed=seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.rand(3), expected)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.slow
def test_text_embeddings_are_the_same_in_another_process():
    here = ngram_buckets("a Kite", buckets=1024, sizes=(2, 3, 4))
    code = (
        "from magicseg.model.encoder import ngram_buckets as f; print([*f('a Kite', buckets=1024, sizes=(2, 3, 4))])"
    )
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert json.loads(there) == list(here)


def test_any_text_has_an_embedding():
    texts = ["", "x", "a photo of a zebra", "傘"]
    assert TextEncoder(16)(texts).isfinite().all()


def test_saved_and_loaded_is_the_same_model(model, tmp_path):
    digest = save_segmenter(model, tmp_path, provenance={"steps": 3})
    again = load_segmenter(tmp_path)
    assert again.settings == model.settings
    assert weights_digest(again) == digest == weights_digest(model)
    text = model.encode_classes(["car"])
    assert torch.equal(again(pictures(), text).logits, model(pictures(), text).logits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "model.json", "model.safetensors"]
    assert json.loads((tmp_path / "model.json").read_text())["provenance"] == {"steps": 3}


def test_a_damaged_or_unknown_model_folder_is_refused(model, tmp_path):
    with pytest.raises(DataError, match="no trained model"):
        load_segmenter(tmp_path)
    save_segmenter(model, tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    (tmp_path / "model.json").write_text(json.dumps(card | {"weights_digest": "sha256:0"}))
    with pytest.raises(DataError, match=r"the digest of the weights is not the one in model\.json"):
        load_segmenter(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(card | {"format": 99}))
    with pytest.raises(DataError, match="format 99"):
        load_segmenter(tmp_path)
    (tmp_path / "model.json").write_text(json.dumps(card))
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[:-100])
    with pytest.raises(DataError, match="cannot be loaded"):
        load_segmenter(tmp_path)
