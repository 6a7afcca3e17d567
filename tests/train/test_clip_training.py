"""Train with a frozen open_clip model, save the model, load it and segment an image."""

import numpy as np
import pytest
import torch

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from magicseg import load_model
from magicseg.config.model import OpenClipSettings
from magicseg.core.errors import ConfigError
from magicseg.data.dataset import Pick, SampleDataset
from magicseg.model.segmenter import build_segmenter
from magicseg.model.targets import sample_targets
from magicseg.train.loop import train
from magicseg.train.step import ModelWithLosses


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def clip_training(folder, **changes):
    encoder = OpenClipSettings(name="open-clip", weights={"model": str(folder)}, **changes.pop("encoder", {}))
    return SETTINGS.model_copy(update={"encoder": encoder, "steps": 2, "paste": 0.0, **changes})


@pytest.mark.parametrize("freeze", [True, "text", False])
def test_two_steps_of_training_give_a_model_that_segments(checkpoint, tmp_path, freeze):
    settings = clip_training(checkpoint("open_clip_quickgelu"), encoder={"freeze": freeze})
    samples = Squares(np.arange(12))
    result = train(samples, VOCABULARY, settings, tmp_path / "run", seed=3, data_fingerprint="x")
    assert result.status == "finished"
    before = build_segmenter(settings.model, seed=3).state_dict()
    model = load_model(tmp_path / "run")
    after = model.segmenter.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("decoder.") for name in changed)
    assert any(name.startswith("encoder.clip.visual.") for name in changed) == (freeze is not True)
    assert any(name.startswith("encoder.clip.transformer.") for name in changed) == (freeze is False)
    image = samples.read(np.array([0]))[0][0]
    found = model.segment(image, VOCABULARY.names)
    assert found.labels.shape == (16, 16)
    assert "3 classes: red, green, blue" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_with_a_frozen_clip_the_losses_on_tokens_reach_the_prompts_only(checkpoint):
    """Those that compare masks reach the decoder too."""
    settings = clip_training(
        checkpoint("open_clip_quickgelu"),
        silence_weight=1.0,
        aligned_pair_weight=1.0,
        text_direction_weight=1.0,
        text_direction_margin=2.0,
    )
    model = build_segmenter(settings.model, seed=0).train()
    module = ModelWithLosses(model, VOCABULARY, settings)
    batch = SampleDataset(Squares(np.arange(6)), settings, seed=0).__getitems__([Pick(0, i, i, 0) for i in range(6)])
    targets = sample_targets(batch.masks, torch.rand(6, 3), sampled_classes=2)
    found = module(batch, targets, module.counts(batch, targets))

    def size(loss, parameters):
        grads = torch.autograd.grad(loss, list(parameters), retain_graph=True, allow_unused=True)
        return sum(float(grad.abs().sum()) for grad in grads if grad is not None)

    for name in ("counterfactual", "text_direction", "silence", "aligned_pair"):
        assert size(found[name], model.prompts.parameters()) > 0, name
        decoder = size(found[name], model.decoder.parameters())
        assert (decoder == 0) == (name in ("counterfactual", "text_direction")), name
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())


def test_images_that_do_not_fit_the_patch_are_refused_before_training(checkpoint, tmp_path):
    settings = clip_training(checkpoint("open_clip"))
    with pytest.raises(ConfigError, match=r"12 pixels are not a multiple of the encoder's stride \(8\)"):
        train(Squares(np.arange(12), image_size=12), VOCABULARY, settings, tmp_path, seed=0, data_fingerprint="x")
