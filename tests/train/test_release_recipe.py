"""The training of the preset ``paper`` against `helpers.reference_release`: losses, optimizer, schedule, resuming."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from helpers import reference_release
from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from helpers.paper_preset import tiny_paper
from helpers.reference_parameters import decoder_parameters, prompt_parameters
from helpers.tiny_runs import do, make_run
from magicseg.config.loading import load_config
from magicseg.core.errors import PlanMismatch
from magicseg.data.dataset import Batch
from magicseg.labels import IGNORE, Label, Vocabulary
from magicseg.model.losses.masks import focal_loss
from magicseg.model.losses.release import release_focal_loss
from magicseg.model.saved_model import load_segmenter
from magicseg.model.segmenter import build_segmenter
from magicseg.model.targets import sample_targets
from magicseg.train.loop import train
from magicseg.train.optimizer import build_optimizer, learning_rate, set_learning_rate
from magicseg.train.step import ModelWithLosses

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
NAMES = ("cat", "dog", "car", "house", "tree", "boat")
LABELS = Vocabulary(name="six", labels=tuple(Label(id=id_, name=name) for id_, name in enumerate(NAMES, 1)))
FOCAL = {"alpha": 0.25, "gamma": 2.0}


@pytest.fixture(autouse=True)
def _apart(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def settings(monkeypatch):
    return tiny_paper(monkeypatch)


def random(seed):
    return torch.Generator().manual_seed(seed)


def batch_of(count=3, side=48):
    """A batch of images of noise with one or two rectangles of classes each."""
    images, others = torch.randint(0, 256, (2, count, 3, side, side), dtype=torch.uint8, generator=random(0))
    masks = torch.zeros(count, side, side, dtype=torch.int32)
    for b in range(count):
        masks[b, 5 : 20 + b, 8:30] = b % 6 + 1
        if b % 2:
            masks[b, 30:, 20:] = (b + 2) % 6 + 1
    return Batch(images, others, masks, torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.int64))


def targets_of(batch, settings):
    return sample_targets(
        batch.masks, torch.rand(len(batch.masks), 6, generator=random(2)), sampled_classes=settings.sampled_classes
    )


def perturbed(settings):
    model = build_segmenter(settings.model, seed=0).eval()  # without dropout
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=random(1))
    return model


def reference_losses(model, batch, targets):
    """The three terms, from the pixels on."""
    encoder = model.encoder
    images = torch.cat([batch.images, batch.counterfactuals])
    tokens = reference_release.encode(
        images, encoder.clip.visual, prompt_parameters(model.prompts), encoder.mean, encoder.std
    )
    count = len(batch.images)
    cls, others = tokens[:count, 0], tokens[count:, 0]
    text = torch.stack([model.encode_classes([NAMES[k] for k in row]) for row in targets.classes.tolist()])
    layers, query = decoder_parameters(model.decoder)
    grid = reference_release.decode(cls, tokens[:count, 1:], text, layers, query, model.settings.decoder_heads)[-1]
    logits = torch.nn.functional.interpolate(grid.reshape(count, -1, 6, 6), (48, 48), mode="bilinear")
    masks = torch.stack(
        [torch.stack([batch.masks[b] == k + 1 for k in row]) for b, row in enumerate(targets.classes.tolist())]
    )
    present = masks.flatten(2).any(-1)
    return {
        "focal": reference_release.focal(logits, masks, present),
        "dice": reference_release.dice(logits, masks, present),
        "counterfactual": reference_release.counterfactual(cls, others),
    }


def test_the_loss_and_the_gradient_of_every_trained_parameter_are_the_references(settings):
    model = perturbed(settings)
    batch = batch_of()
    targets = targets_of(batch, settings)
    module = ModelWithLosses(model, LABELS, settings)
    found = module(batch, targets, module.counts(batch, targets))
    expected = reference_losses(model, batch, targets)
    assert found.keys() == {"loss", *expected}
    for name, value in expected.items():
        assert value > 0.01
        torch.testing.assert_close(found[name], value, **CLOSE)
    total = 100 * expected["focal"] + expected["dice"] + expected["counterfactual"]
    torch.testing.assert_close(found["loss"], total, **CLOSE)
    trained = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert {name.partition(".")[0] for name in trained} == {"prompts", "decoder"}
    gradients = [torch.autograd.grad(loss, list(trained.values())) for loss in (found["loss"], total)]
    for name, one, other in zip(trained, *gradients, strict=True):
        largest = float(other.abs().max())
        assert largest > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * max(largest, 1), msg=name)


@pytest.mark.parametrize("with_ignored", [False, True])
def test_focal_is_the_sum_over_all_masks_by_the_number_of_present_ones(with_ignored):
    class_map = torch.randint(0, 7, (3, 6, 5), generator=random(0))
    class_map[1] = 2
    if with_ignored:
        class_map[torch.rand(class_map.shape, generator=random(3)) < 0.3] = IGNORE
        class_map[2] = IGNORE
    targets = sample_targets(class_map, torch.rand(3, 6, generator=random(1)), sampled_classes=4)
    logits = (2 * torch.randn(3, 4, 6, 5, generator=random(2))).requires_grad_()
    found = release_focal_loss(logits, targets.masks, targets.valid, targets.present, **FOCAL)
    shown = slice(0, 2 if with_ignored else 3)  # an image without a valid pixel has a mean over nothing: 0
    expected = reference_release.focal(
        logits[shown], targets.masks[shown], targets.present, ignored=~targets.valid[shown, 0]
    )
    torch.testing.assert_close(found, expected, **CLOSE)
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*gradients, **CLOSE)


def test_classes_that_are_padding_do_not_count():
    class_map = torch.randint(0, 4, (2, 4, 4), generator=random(0))
    allowed = torch.tensor([[True] * 3 + [False] * 5] * 2)
    targets = sample_targets(class_map, torch.rand(2, 8, generator=random(1)), sampled_classes=6, allowed=allowed)
    assert targets.asked.sum(1).tolist() == [3, 3]
    logits = torch.randn(2, 6, 4, 4, generator=random(2))
    arguments = targets.masks, targets.valid, targets.present
    found = release_focal_loss(logits, *arguments, **FOCAL, asked=targets.asked)
    changed = torch.where(targets.asked[..., None, None], logits, logits + 7)
    torch.testing.assert_close(release_focal_loss(changed, *arguments, **FOCAL, asked=targets.asked), found)


def test_without_a_present_mask_the_sum_is_divided_by_one():
    class_map = torch.zeros(2, 4, 4, dtype=torch.int64)
    targets = sample_targets(class_map, torch.rand(2, 3, generator=random(0)), sampled_classes=3)
    logits = torch.randn(2, 3, 4, 4, generator=random(1))
    found = release_focal_loss(logits, targets.masks, targets.valid, targets.present, **FOCAL)
    torch.testing.assert_close(found, reference_release.focal(logits, targets.masks, targets.present))
    assert found > 0


@pytest.mark.parametrize(
    ("images", "classes", "ratio"), [(3, 10, 15.0), (16, 100, 1600 / 24)], ids=["small", "as in the paper"]
)
def test_the_release_weighs_focal_by_all_masks_over_present_ones(images, classes, ratio):
    """3 images of 10 classes with 2 objects in all; 16 images of 100 classes, half with one object, half with two."""
    class_map = torch.zeros(images, 8, 8, dtype=torch.int64)
    objects = [1, 1, 0] if images == 3 else [1, 2] * 8
    for b, count in enumerate(objects):
        class_map[b, :4] = 1 if count > 0 else 0
        class_map[b, 6:] = 2 if count > 1 else 0
    targets = sample_targets(class_map, torch.rand(images, classes, generator=random(0)), sampled_classes=classes)
    logits = torch.randn(images, classes, 8, 8, generator=random(1))
    release = release_focal_loss(logits, targets.masks, targets.valid, targets.present, **FOCAL)
    mean = focal_loss(logits, targets.masks, targets.valid, **FOCAL)
    assert (release / mean).item() == pytest.approx(ratio, rel=1e-5)


def test_all_trained_parameters_decay_and_new_ones_learn_ten_times_faster(monkeypatch):
    settings = tiny_paper(monkeypatch, "train.encoder.freeze=text")
    model = build_segmenter(settings.model, seed=0)
    optimizer = build_optimizer(model, settings)
    names = {id(value): name for name, value in model.named_parameters()}
    groups = {
        names[id(value)]: (group["weight_decay"], group["scale"])
        for group in optimizer.param_groups
        for value in group["params"]
    }
    assert groups.keys() == {name for name, value in model.named_parameters() if value.requires_grad}
    for name, found in groups.items():
        assert found == (0.01, 1.0 if name.startswith("encoder.") else 10.0), name


@pytest.mark.parametrize("step", [0, 1, 40, 749, 1498, 1499, 1500, 1501, 9_999, 19_999])
def test_the_rates_of_both_kinds_of_groups_are_the_references(monkeypatch, step):
    settings = tiny_paper(monkeypatch, "train.encoder.freeze=text")
    optimizer = build_optimizer(build_segmenter(settings.model, seed=0), settings)
    set_learning_rate(optimizer, step, settings)
    rates = {group["scale"]: group["lr"] for group in optimizer.param_groups}
    expected = {
        scale: reference_release.rate(step, base=2e-5 * scale, steps=20_000, warmup=1500) for scale in (1.0, 10.0)
    }
    assert rates == pytest.approx(expected, rel=1e-9)
    assert learning_rate(step, settings) == rates[1.0]


def test_all_groups_end_at_the_same_floor_with_the_release_only():
    paper = load_config(preset="paper").train
    ours = paper.model_copy(update={"schedule": "poly"})
    assert [learning_rate(20_000, paper, scale=scale) for scale in (1, 10)] == pytest.approx([1e-6, 1e-6])
    assert [learning_rate(20_000, ours, scale=scale) for scale in (1, 10)] == pytest.approx([1e-6, 1e-5])


RELEASE = {"decoder": "zegclip", "losses": "release", "schedule": "release", "weight_decay_on": "all"}


def go(out, settings, stop_after=None):
    asked = []
    return train(
        Squares(np.arange(24)),
        VOCABULARY,
        settings,
        out,
        seed=0,
        data_fingerprint="data",
        stop=lambda: asked.append(0) or len(asked) == stop_after,
    )


def test_training_resumes_with_the_same_curve_and_saves_a_model_of_the_release(tmp_path):
    settings = SETTINGS.model_copy(update={**RELEASE, "cpu_threads": 1})
    whole = go(tmp_path / "whole", settings)
    assert go(tmp_path / "parts", settings, stop_after=3).status == "interrupted"
    assert go(tmp_path / "parts", settings).weights_digest == whole.weights_digest
    assert load_segmenter(tmp_path / "whole" / "model").window_average == "probabilities"


def test_a_checkpoint_from_before_these_settings_means_their_defaults(monkeypatch, tmp_path):
    paper = tiny_paper(monkeypatch, "train.encoder.position_resize=bicubic", "train.encoder.image_size=16")
    before = SETTINGS.model_copy(update={"encoder": paper.encoder, "cpu_threads": 1})
    whole = go(tmp_path / "whole", before)
    go(tmp_path / "parts", before, stop_after=3)
    path = tmp_path / "parts" / "checkpoints" / "step-00000004.safetensors"
    with safe_open(path, framework="pt") as file:
        scalars = json.loads(file.metadata()["magicseg"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for key in RELEASE:
        del scalars["identity"]["train"][key]
    del scalars["identity"]["train"]["encoder"]["position_resize"]
    path.write_bytes(save(tensors, metadata={"magicseg": json.dumps(scalars)}))
    bilinear = before.encoder.model_copy(update={"position_resize": "bilinear"})
    with pytest.raises(PlanMismatch, match="position_resize was 'bicubic' and is now 'bilinear'"):
        go(tmp_path / "parts", before.model_copy(update={"encoder": bilinear}))
    with pytest.raises(PlanMismatch, match="losses was 'mean' and is now 'release'"):
        go(tmp_path / "parts", before.model_copy(update={"losses": "release"}))
    assert go(tmp_path / "parts", before).weights_digest == whole.weights_digest


@pytest.mark.slow
def test_a_run_trains_and_is_scored_with_the_releases_settings(tmp_path, magicseg):
    changes = [f"train.{key}={value}" for key, value in RELEASE.items()]
    sizes = ["train.decoder_width=64", "train.steps=4", "train.checkpoint_every=2", "evaluate.scenes=16"]
    run = make_run(tmp_path / "run", *changes, *sizes, "train.log_every=1", "train.loader_workers=0")
    do(run)
    for command in ("train", "evaluate", "report"):
        done = magicseg(command, run.path)
        assert done.code == 0, done.err
    rows = [json.loads(line) for line in (run.path / "train.jsonl").read_text().splitlines()]
    assert len(rows) == 4
    assert all(np.isfinite(row["loss"]) for row in rows)
    assert (run.path / "results" / "miniature.json").exists()
