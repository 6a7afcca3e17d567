"""The training of the learned miniature: repeatable to the bit, and resumed after a kill at any step."""

import dataclasses
import functools
import json

import pytest
import torch
from safetensors.torch import load_file

from helpers import tiny_training
from helpers.tiny_training import PLAN
from training import clip, denoiser, latents, loop, painted, scenes
from training.tokens import write_tokenizer

KINDS = ["autoencoder", "denoiser", "clip", "judge", "detector", "segmenter"]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(painted, "CHUNK", 8)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def curve(folder):
    """Steps and losses."""
    lines = [json.loads(line) for line in (folder / loop.CURVE).read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines]


def same_bits(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_was_killed_goes_on_as_if_it_had_not_been(kind, tmp_path, monkeypatch):
    whole = tiny_training.fit(kind, tmp_path / "whole")

    stepped = torch.optim.AdamW.step
    steps = iter(range(100))

    def killed(self, *args, **kwargs):
        if next(steps) == 5:  # one step after a checkpoint
            raise KeyboardInterrupt
        return stepped(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        tiny_training.fit(kind, tmp_path / "cut")
    monkeypatch.setattr(torch.optim.AdamW, "step", stepped)
    own = tmp_path / "cut" / kind
    assert loop.steps_of(own) == 4
    with (own / loop.CURVE).open("a") as file:  # what a kill in mid-write leaves
        file.write('{"step": 6, "lo')
    (own / loop.CHECKPOINT).with_suffix(".part").write_bytes(b"half")

    resumed = tiny_training.fit(kind, tmp_path / "cut")
    assert curve(own) == curve(tmp_path / "whole" / kind)
    assert len(curve(own)) == 3
    assert same_bits(resumed.state_dict(), whole.state_dict())
    files = [load_file(tmp_path / each / kind / loop.CHECKPOINT) for each in ("whole", "cut")]
    assert same_bits(*files), "the moments of the optimiser too"


def test_more_steps_may_be_asked_for_before_the_cooldown(tmp_path):
    first = dataclasses.replace(PLAN, steps=4, cooldown=0)
    tiny_training.fit("judge", tmp_path / "two", first)
    tiny_training.fit("judge", tmp_path / "two", dataclasses.replace(PLAN, steps=8, cooldown=4))
    tiny_training.fit("judge", tmp_path / "one", dataclasses.replace(PLAN, steps=8, cooldown=4))
    assert curve(tmp_path / "two/judge") == curve(tmp_path / "one/judge")
    with pytest.raises(ValueError, match="in the cooldown, which began at 4"):
        tiny_training.fit("judge", tmp_path / "one", dataclasses.replace(PLAN, steps=20, cooldown=4))


def test_a_checkpoint_of_another_plan_is_refused(tmp_path):
    tiny_training.fit("judge", tmp_path)
    with pytest.raises(ValueError, match=r"another learning_rate: 0\.001"):
        tiny_training.fit("judge", tmp_path, dataclasses.replace(PLAN, learning_rate=1e-2))


def test_painting_processes_do_not_change_the_scenes():
    paint = functools.partial(scenes.scene, seed=0, stream="test")
    alone, shared = (list(scenes.ahead(paint, range(3, 9), workers)) for workers in (0, 2))
    assert [one.caption for one in alone] == [one.caption for one in shared]
    assert all((one.image == other.image).all() for one, other in zip(alone, shared, strict=True))
    assert len({one.image.tobytes() for one in alone}) == 6


def test_latents_are_white_and_hold_most_of_the_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(painted, "CHUNK", 32)
    images = painted.painted(tmp_path, write_tokenizer(tmp_path / "tokens"), count=32, seed=0).images
    space = latents.components(images)
    values = space.of(images)
    assert values.shape == (32, 8, 16, 16)
    assert values.mean((0, 2, 3)).abs().max() < 1e-3
    assert (values.std((0, 2, 3)) - 1).abs().max() < 1e-3
    columns = space.weight.flatten(1).T
    again = (values - space.bias[:, None, None]).permute(0, 2, 3, 1) @ torch.linalg.pinv(columns)
    patches = torch.nn.functional.unfold(images / 255, 4, stride=4).permute(0, 2, 1).reshape(again.shape)
    offset = (patches - again).mean((0, 1, 2))  # what the components do not hold, on average
    assert (patches - again - offset).square().mean() < 2e-3, "about 27 dB"


@pytest.mark.parametrize("kind", ["denoiser", "clip"])
def test_muon_moves_the_matrices_of_layers_and_filters_but_no_embedding(kind, tmp_path):
    tokenizer = write_tokenizer(tmp_path)
    made = {
        "denoiser": lambda: denoiser.build(tiny_training.SIZES, tokenizer),
        "clip": lambda: clip.build(tiny_training.CLIP_SIZES, tokenizer),
    }[kind]()
    named = dict(made.named_parameters())
    plan = {"denoiser": denoiser.PLAN, "clip": clip.PLAN}[kind]
    adam, muon = (
        {name for name, value in named.items() if any(value is each for each in optimiser.param_groups[0]["params"])}
        for optimiser in loop.optimisers_of(named, plan)
    )
    filters = {name for name in muon if "conv1" in name and "resnets" in name}
    assert bool(filters) == (kind == "denoiser")
    assert any("mlp" in name or "to_q" in name for name in muon)
    assert not [name for name in muon if "embedding" in name.replace("time_embedding", "")]
    assert any("embedding" in name for name in adam)
