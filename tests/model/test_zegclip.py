"""The decoder ``zegclip`` and everything that comes with it, against `helpers.reference_release`.

The settings are those of the preset ``paper``, at a smaller size.
"""

import json

import pytest
import torch

from helpers import reference_release
from helpers.paper_preset import tiny_paper
from helpers.reference_parameters import decoder_parameters, prompt_parameters
from helpers.tiny_models import tiny_settings
from magicseg import load_model
from magicseg.config.loading import load_config
from magicseg.config.model import ModelSettings
from magicseg.core.errors import ConfigError
from magicseg.evaluate.heads.segmenter_head import SegmenterHead
from magicseg.model.saved_model import load_segmenter, save_segmenter
from magicseg.model.segmenter import build_segmenter
from magicseg.model.zegclip_decoder import ZegclipDecoder

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = ["cat", "dog", "car", "house"]


@pytest.fixture
def settings(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny_paper(monkeypatch)


@pytest.fixture
def model(settings):
    """A model whose parameters are all far from their initial values."""
    model = build_segmenter(settings.model, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.4 * torch.randn(parameter.shape, generator=generator)
    return model


def pictures(height=48, width=48, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(torch.randn(shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def expected_tokens(model, images):
    encoder = model.encoder
    return reference_release.encode(
        images, encoder.clip.visual, prompt_parameters(model.prompts), encoder.mean, encoder.std
    )


def expected_layers(model, cls, patches, text):
    layers, query = decoder_parameters(model.decoder)
    return reference_release.decode(cls, patches, text, layers, query, model.settings.decoder_heads)


def test_the_preset_has_the_sizes_and_the_parts_of_the_release(settings):
    full = load_config(preset="paper").train
    sizes = full.decoder_layers, full.decoder_width, full.decoder_heads, full.prompt_tokens, full.prompt_dropout
    assert sizes == (3, 512, 8, 10, 0.1)
    for one in (full, settings):
        assert (one.decoder, one.losses, one.schedule, one.weight_decay_on) == ("zegclip", *["release"] * 2, "all")
        assert one.encoder.position_resize == "bilinear"
    assert settings.decoder_heads == 8


def test_every_layers_masks_and_their_gradients_are_the_references(model):
    inputs = [unit(2, 16, seed=1), unit(2, 36, 16, seed=2), unit(2, 4, 16, seed=3)]
    ours, theirs = ([each.clone().requires_grad_() for each in inputs] for _ in range(2))
    found, expected = model.decoder.every_layer(*ours), expected_layers(model, *theirs)
    assert len(found) == len(expected) == 3
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
        assert one.std() > 0.05  # a comparison of zeros would prove nothing
    assert torch.equal(model.decoder(*ours), found[-1])
    parameters = list(model.decoder.parameters())
    weight = torch.randn(expected[-1].shape, generator=torch.Generator().manual_seed(4))
    gradients = [
        torch.autograd.grad((layers[-1] * weight).sum(), [*tensors, *parameters])
        for layers, tensors in ((found, ours), (expected, theirs))
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (32, 56)])
def test_the_whole_model_is_the_references_at_every_size(model, size):
    """Positions are resized when the weights are loaded (32 to 48 pixels), and again for other sizes."""
    images = pictures(*size)
    text = model.encode_classes(NAMES)
    tokens = expected_tokens(model, images)
    grid = expected_layers(model, tokens[:, 0], tokens[:, 1:], text.expand(2, -1, -1))[-1]
    grid = grid.reshape(2, 4, size[0] // 8, size[1] // 8)
    expected = torch.nn.functional.interpolate(grid, size, mode="bilinear", align_corners=False)
    with torch.no_grad():
        output = model(images, text)
    torch.testing.assert_close(output.cls, tokens[:, 0], **CLOSE)
    torch.testing.assert_close(output.logits, expected, **CLOSE)


def test_positions_are_resized_bilinearly_when_the_weights_are_loaded(settings):
    encoder = settings.encoder
    own = build_segmenter(settings.model.model_copy(update={"encoder": _resized(encoder, None)}), seed=0).encoder
    resized = build_segmenter(settings.model, seed=0).encoder
    expected = reference_release.positions(own.clip.visual.positional_embedding, 4, (6, 6))
    torch.testing.assert_close(resized.clip.visual.positional_embedding, expected, **CLOSE)


def _resized(encoder, size):
    return encoder.model_copy(update={"image_size": size})


def test_initial_weights_are_the_releases(settings):
    wide = settings.model.model_copy(update={"prompt_tokens": 64})
    model = build_segmenter(wide, seed=0)
    for module in model.decoder.modules():
        if isinstance(module, torch.nn.Linear):
            assert not module.bias.any()
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15)
        if isinstance(module, torch.nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert not module.bias.any()
    assert model.prompts.projection.weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.15)
    bound = (6 / (3 * 8**2 + 16)) ** 0.5
    assert 0.95 * bound < model.prompts.tokens.abs().max() <= bound


def test_dropout_takes_part_in_training_only(model):
    arguments = unit(2, 16, seed=1), unit(2, 36, 16, seed=2), unit(2, 4, 16, seed=3)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert torch.equal(model.decoder(*arguments), model.decoder(*arguments))
        model.train()
        layers = [model.decoder.every_layer(*arguments) for _ in range(2)]
    assert torch.equal(layers[0][0], layers[1][0])  # nothing is dropped before the first layer's attention
    assert not torch.equal(layers[0][1], layers[1][1])


@pytest.mark.parametrize("place", ["attention", "branch", "feed-forward"])
def test_dropout_is_in_all_three_places(place):
    """One place at a time is left active by making the others' inputs zero or their rates 0."""
    decoder = ZegclipDecoder(width=16, layers=2, heads=4).train()
    layer = decoder.layers[0]
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    inner = layer.feed_forward[2]
    if place != "branch":
        layer.dropout.p = 0.0
    if place != "feed-forward":
        inner.p = 0.0
    if place != "attention":
        layer.eval()
        layer.dropout.train()
        inner.train()
    arguments = unit(1, 16), unit(1, 9, 16), unit(1, 3, 16)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        assert not torch.equal(decoder(*arguments), decoder(*arguments))


def test_both_branches_go_through_dropout_before_they_are_added(model):
    layer = model.decoder.layers[0]
    branches, dropped = [], []
    for module in (layer.out, layer.feed_forward):
        module.register_forward_hook(lambda _module, _inputs, output: branches.append(output))
    layer.dropout.register_forward_hook(lambda _module, inputs, _output: dropped.append(inputs[0]))
    model.decoder(unit(1, 16), unit(1, 9, 16), unit(1, 3, 16))
    assert len(dropped) == 2
    assert all(one is other for one, other in zip(dropped, branches, strict=True))


def test_the_last_layer_has_no_parameters_without_effect(model):
    model.decoder(unit(1, 16), unit(1, 9, 16), unit(1, 3, 16)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.decoder.parameters())


def test_a_decoder_of_another_width_than_the_embeddings_is_refused():
    settings = tiny_settings(decoder_width=32).model_copy(update={"decoder": "zegclip"})
    with pytest.raises(ConfigError, match="decoder_width is 32, and the encoder's embed_dim is 16") as refused:
        build_segmenter(settings, seed=0)
    assert refused.value.hint == "set train.decoder_width=16, or train.decoder=pre-norm"
    with pytest.raises(ConfigError, match="not a multiple of decoder_heads"):
        build_segmenter(settings.model_copy(update={"decoder_width": 16, "decoder_heads": 3}), seed=0)


def test_a_model_that_others_build_has_what_it_had(settings):
    """The settings' defaults are the model as it was: without the release's norm, positions and windows."""
    plain = ModelSettings(encoder=_resized(settings.encoder, None).model_dump() | {"position_resize": "bicubic"})
    model = build_segmenter(plain.model_copy(update={"decoder_width": 16}), seed=0)
    assert model.prompts.norm_of == "prompts"
    assert model.window_average == "logits"
    assert type(model.decoder).__name__ == "MaskDecoder"


def test_a_saved_model_keeps_decoder_positions_and_windows(model, tmp_path):
    save_segmenter(model, tmp_path)
    again = load_segmenter(tmp_path)
    images = pictures(64, 64)
    text = model.encode_classes(NAMES)
    with torch.no_grad():
        assert torch.equal(again(images, text).logits, model(images, text).logits)
    assert again.window_average == "probabilities"
    assert again.encoder.position_resize == "bilinear"


def test_a_card_from_before_these_settings_means_their_defaults(settings, tmp_path):
    plain = settings.model.model_copy(
        update={
            "decoder": "pre-norm",
            "encoder": settings.encoder.model_copy(update={"position_resize": "bicubic"}),
        }
    )
    model = build_segmenter(plain, seed=0).eval()
    save_segmenter(model, tmp_path)
    card = json.loads((tmp_path / "model.json").read_text())
    del card["settings"]["decoder"], card["settings"]["encoder"]["position_resize"]
    (tmp_path / "model.json").write_text(json.dumps(card))
    again = load_segmenter(tmp_path)
    assert (again.settings.decoder, again.encoder.position_resize) == ("pre-norm", "bicubic")
    text = model.encode_classes(NAMES)
    with torch.no_grad():
        assert torch.equal(again(pictures(64, 64), text).logits, model(pictures(64, 64), text).logits)


@pytest.mark.parametrize("short_side", [None, 60])
def test_windows_average_probabilities(model, tmp_path, monkeypatch, short_side):
    with torch.no_grad():
        model.decoder.to_query.weight *= 10  # far from 0 the two averages differ
    save_segmenter(model, tmp_path)
    loaded = load_model(tmp_path)
    image = pictures(52, 70, count=1)[0]
    with torch.no_grad():
        text = model.encode_classes(NAMES)
        pixels = image
        if short_side is not None:
            pixels = torch.nn.functional.interpolate(image[None].float(), (60, 81), mode="bilinear")[0].round().byte()
        expected = reference_release.window_means(lambda crops: model.native_logits(crops, text), pixels, 48, 40)
        if short_side is not None:
            expected = torch.nn.functional.interpolate(expected[None], (52, 70), mode="bilinear")[0]
    found = loaded.segment(
        image.permute(1, 2, 0).numpy(), NAMES, window=48, stride=40, short_side=short_side, threshold=0.5
    )
    torch.testing.assert_close(torch.from_numpy(found.scores), expected, **CLOSE)
    highest, place = expected.max(0)
    clear = (highest - 0.5).abs() > 1e-4
    assert torch.equal(torch.from_numpy(found.labels)[clear], torch.where(highest >= 0.5, place + 1, 0)[clear].int())
    monkeypatch.setattr(type(model), "window_average", "logits")
    other = loaded.segment(image.permute(1, 2, 0).numpy(), NAMES, window=48, stride=40, short_side=short_side)
    assert abs(other.scores - found.scores).max() > 1e-3


def test_results_name_what_windows_average_where_it_is_new(model, settings):
    plain = tiny_settings()
    head = SegmenterHead(build_segmenter(plain, seed=0), "sha256:0")
    assert (head.window_average, head.identity) == ("logits", {"weights": "sha256:0"})
    own = SegmenterHead(model, "sha256:0")
    assert own.window_average == "probabilities"
    assert own.identity == {"weights": "sha256:0", "window_average": "probabilities"}
