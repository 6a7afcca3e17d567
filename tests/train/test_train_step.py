"""One step: it never waits for the device, parts add up to the batch, failed steps change no weights."""

import dataclasses
import itertools
import math
import shutil

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from helpers.coloured_squares import SETTINGS, VOCABULARY, Squares
from helpers.reference_losses import slow_dice, slow_focal, slow_responses
from magicseg.core.distributed import ALONE
from magicseg.core.errors import BackendError, DataError, IncompleteError
from magicseg.data.dataset import Batch
from magicseg.labels import IGNORE
from magicseg.model.losses import loss_terms
from magicseg.model.losses.class_chunks import term_counts, term_values
from magicseg.model.losses.term import LossTerm
from magicseg.model.segmenter import build_segmenter
from magicseg.model.targets import sample_targets
from magicseg.train.deferred_metrics import Late
from magicseg.train.step import ModelWithLosses, Stepper

# Neither batch norm nor chance: a batch is then the sum of its parts.
CALM = {
    "encoder": SETTINGS.encoder.model_copy(update={"freeze": True}),
    "prompt_dropout": 0.0,
    "drop_path": 0.0,
    "batch_size": 6,
    "paste": 0.0,
}

# Every optional loss on pairs, and hard negatives: of the two absent classes of a square, the nearer one.
PAIR_LOSSES = {
    "silence_weight": 20.0,
    "aligned_pair_weight": 1.0,
    "text_direction_weight": 1.0,
    "text_direction_margin": 0.8,
    "hard_negatives": 1,
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(before)


def batch_of(count=6, first=0, **changes):
    images, counterfactuals, masks = Squares(np.arange(64)).read(np.arange(first, first + count))
    masks = torch.from_numpy(masks.astype(np.int32))
    masks[0, :3] = IGNORE
    masks[1] = 0
    whole = Batch(
        torch.from_numpy(images).permute(0, 3, 1, 2),
        torch.from_numpy(counterfactuals).permute(0, 3, 1, 2),
        masks,
        torch.arange(count) != 2,
        torch.zeros(count, dtype=torch.int64),
    )
    return whole._replace(**changes)


def stepper(allowed=None, validated=(False,), **changes):
    settings = SETTINGS.model_copy(update=changes)
    return Stepper(
        build_segmenter(settings.model, seed=0).train(),
        VOCABULARY,
        settings,
        seed=0,
        device=torch.device("cpu"),
        world=ALONE,
        allowed=allowed,
        validated=np.array(validated),
    )


def losses(report):
    return dict(zip(report.names, report.losses.tolist(), strict=True))


def weights(one):
    return {name: value.clone() for name, value in one.model.state_dict().items()}


class NoWaiting(TorchDispatchMode):
    """Fails on operations that would make the host wait for a GPU."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        assert name not in self.WAITING, f"{name} waits for the device"
        assert name != "index" or not any(place is not None and place.dtype == torch.bool for place in args[1]), (
            "an index of booleans waits for the device"
        )
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_clip": 1.0, "ema_decay": 0.9, "deep_supervision_weight": 0.5},
        {"precision": "bf16"},
        {"accumulate": 5},
        {"class_chunk": 1, **PAIR_LOSSES},
        {"decoder": "zegclip", "losses": "release", "weight_decay_on": "all"},
        PAIR_LOSSES,
    ],
    ids=lambda changes: " ".join(changes) or "plain",
)
def test_no_step_waits_for_the_device(changes):
    one = stepper(**changes, allowed=np.ones((1, 3), bool))
    with NoWaiting():
        for step in range(2):
            one(batch_of(5), step=step, stop=False)


def test_the_check_for_waiting_detects_a_wait():
    with NoWaiting(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(()).item()


@pytest.mark.parametrize("changes", [{}, PAIR_LOSSES, {"losses": "release"}], ids=["plain", "pair losses", "release"])
@pytest.mark.parametrize("accumulate", [2, 3, 6])
def test_accumulated_parts_have_the_losses_and_gradients_of_the_batch(accumulate, changes):
    whole, parts = (
        stepper(**CALM, **changes, accumulate=number, validated=(True, False)) for number in (1, accumulate)
    )
    for step in range(3):
        batch = batch_of(first=step, sources=torch.arange(6) % 2)
        expected = losses(whole(batch, step=step, stop=False))
        assert losses(parts(batch, step=step, stop=False)) == pytest.approx(expected, rel=1e-5)
        for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
            if one.grad is not None:
                torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-6, msg=name)


MASK_LOSSES = {
    "pairs and layers": {**PAIR_LOSSES, "deep_supervision_weight": 0.5, "decoder_layers": 3},
    "release": {"losses": "release", "silence_weight": 20.0},
    "in parts": {**PAIR_LOSSES, "accumulate": 3},
}


@pytest.mark.parametrize("chunk", [1, 2, 3, 7])
@pytest.mark.parametrize("changes", MASK_LOSSES.values(), ids=MASK_LOSSES)
def test_losses_by_chunks_of_classes_have_the_values_and_gradients_of_all(chunk, changes):
    """Three classes are queried. Image 1 has no object, image 2 no pair; source 1 has no green and is not checked."""
    settings = {**CALM, **changes, "sampled_classes": 3}
    allowed = np.array([[True, True, True], [True, False, True]])
    whole, parts = (
        stepper(**settings, class_chunk=number, allowed=allowed, validated=(True, False)) for number in (0, chunk)
    )
    batch = batch_of(sources=torch.arange(6) % 2)
    expected = losses(whole(batch, step=0, stop=False))
    assert losses(parts(batch, step=0, stop=False)) == pytest.approx(expected, rel=1e-6)
    for (name, one), other in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        if one.grad is not None:
            allowance = 1e-5 * one.grad.abs().max().item() + 1e-9
            torch.testing.assert_close(other.grad, one.grad, rtol=1e-5, atol=allowance, msg=name)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest result of an operation: the number of its values."""

    values = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.values = max(self.values, result.numel())
        return result


@pytest.mark.parametrize(("chunk", "upsampled"), [(0, [3]), (1, [1] * 6), (2, [2, 1, 1, 2])])
def test_no_tensor_has_the_pixels_of_more_than_a_chunk_of_classes(chunk, upsampled):
    """Every chunk is upsampled twice: its pixels are freed after its losses, and computed again in reverse order."""
    one = stepper(**CALM, sampled_classes=3, counterfactual_weight=0.0)
    module, batch = one._module, batch_of()
    targets = sample_targets(batch.masks, torch.rand(6, 3), sampled_classes=3)
    found, logits, _ = module._forward_pass(batch, targets)
    seen = []

    def upsample(grid):
        seen.append(grid.shape[1])
        return logits.upsample(grid)

    with LargestTensor() as largest:
        counts = term_counts(module.terms, targets, found.pairs, chunk=chunk)
        values = term_values(module.terms, counts, found, logits._replace(upsample=upsample), None, chunk=chunk)
        sum(values).backward(inputs=list(logits.layers))
    assert seen == upsampled
    assert largest.values == max(upsampled) * 6 * 16 * 16


def test_deep_supervision_is_the_mask_losses_of_the_earlier_layers():
    settings = SETTINGS.model_copy(update={**CALM, "deep_supervision_weight": 0.5, "decoder_layers": 3})
    model = build_segmenter(settings.model, seed=0).train()
    batch = batch_of()
    targets = sample_targets(batch.masks, torch.rand(6, 3), sampled_classes=2)
    module = ModelWithLosses(model, VOCABULARY, settings)
    found = module(batch, targets, module.counts(batch, targets))
    cls, patches = model.encode_images(batch.images)
    text = model.encode_classes(VOCABULARY.names)[targets.classes]
    upsample = model.upsampler(patches, batch.images)
    layers = [upsample(each) for each in model.decode_on_grid(cls, patches, text, (16, 16), every_layer=True)]
    assert len(layers) == 3
    expected = 0.0
    for logits in layers[:-1]:
        focal = slow_focal(logits, targets.masks, targets.valid, settings.focal_alpha, settings.focal_gamma)
        dice = slow_dice(logits, targets.masks, targets.valid, targets.present)
        expected += settings.focal_weight * focal + settings.dice_weight * dice
    assert found["deep_supervision"].item() == pytest.approx(expected, rel=1e-4)
    others = (
        settings.focal_weight * found["focal"]
        + settings.dice_weight * found["dice"]
        + settings.counterfactual_weight * found["counterfactual"]
    )
    assert found["loss"].item() == pytest.approx((others + 0.5 * found["deep_supervision"]).item(), rel=1e-6)


def test_a_term_in_the_list_is_counted_weighted_and_reported(monkeypatch):
    """Its count adds up over the parts of a batch, and it may read the counterfactual images by itself."""

    def count(targets, pairs):
        return torch.stack([pairs.paired.sum(), targets.present.sum()])

    def compute(found, count):
        assert count.tolist() == [5, count[1]]
        return (found.counterfactuals.cls[:, 0] * found.pairs.paired).sum().float() / count[0]

    ours = LossTerm(name="silence", weight=3.0, count=count, compute=compute, reads_counterfactuals=True)
    monkeypatch.setattr("magicseg.train.step.loss_terms", lambda settings: (*loss_terms(settings), ours))
    reports = [
        stepper(**CALM, counterfactual_weight=0.0, accumulate=accumulate)(batch_of(), step=0, stop=False)
        for accumulate in (1, 3)
    ]
    assert [report.names for report in reports] == [("loss", "focal", "dice", "silence")] * 2
    whole, parts = (losses(report) for report in reports)
    assert parts == pytest.approx(whole, rel=1e-5)
    expected = SETTINGS.focal_weight * whole["focal"] + SETTINGS.dice_weight * whole["dice"] + 3 * whole["silence"]
    assert whole["loss"] == pytest.approx(expected, rel=1e-5)


def test_losses_on_pairs_change_no_bit_of_the_others():
    plain, more = stepper(**CALM), stepper(**CALM, **PAIR_LOSSES | {"hard_negatives": 0})
    expected, found = (losses(one(batch_of(), step=0, stop=False)) for one in (plain, more))
    assert found.keys() - expected.keys() == {"silence", "aligned_pair", "text_direction"}
    assert all(found[name] == expected[name] for name in ("focal", "dice", "counterfactual"))


def test_hard_negatives_are_the_absent_classes_nearest_to_the_counterfactual(monkeypatch):
    """They alone have the counterfactuals encoded. An image without a pair or an object keeps its random classes."""
    seen = []

    def recorded(term):
        def compute(found, count):
            seen.append(found)
            return term.compute(found, count)

        return dataclasses.replace(term, compute=compute)

    monkeypatch.setattr(
        "magicseg.train.step.loss_terms", lambda settings: tuple(map(recorded, loss_terms(settings)[:1]))
    )
    batch = batch_of(6, sources=torch.arange(6) % 2)
    allowed = np.array([[True, True, True], [True, False, True]])
    for changes in ({}, {"hard_negatives": 1}):
        one = stepper(**CALM, **changes, counterfactual_weight=0, allowed=allowed, validated=(False, False))
        before = weights(one)
        one(batch, step=0, stop=False)
    plain, hard = seen
    assert plain.counterfactuals is None
    assert hard.counterfactual_logits is None
    one.model.load_state_dict(before)
    texts = one.model.encode_classes(VOCABULARY.names)
    responses = slow_responses(hard.counterfactuals.patches.detach(), texts.detach(), hard.targets.valid, 4)
    for image in range(6):
        queried = hard.targets.classes[image].tolist()
        if image in (1, 2):
            assert torch.equal(hard.targets.classes[image], plain.targets.classes[image])
            continue
        own = int(batch.masks[image][batch.masks[image] != IGNORE].max()) - 1
        absent = [place for place in range(3) if place != own and allowed[image % 2, place]]
        assert queried == [own, max(absent, key=lambda place: responses[image][place])]
        torch.testing.assert_close(hard.text[image], texts[queried])


@pytest.mark.parametrize("what", ["loss", "gradient", "mask"])
def test_after_a_failed_step_the_weights_stay_until_it_is_read(what, monkeypatch):
    one, late = stepper(ema_decay=0.5), Late()
    forward = ModelWithLosses.forward
    batch = batch_of(5)

    def broken(self, *arguments):
        terms = forward(self, *arguments)
        if what == "loss":
            return {**terms, "loss": terms["loss"] + math.inf}  # its gradients are finite
        hooked = terms["loss"] * 1
        if what == "gradient":
            hooked.register_hook(lambda gradient: gradient * math.nan)
        return {**terms, "loss": hooked}

    for step in range(2):
        assert (late.push(one(batch, step=step, stop=False), step=step + 1, rate=1) is None) == (step == 0)
    before = {name: value for name, value in weights(one).items() if "running" not in name and "batches" not in name}
    monkeypatch.setattr(ModelWithLosses, "forward", broken)
    bad = batch._replace(masks=torch.full_like(batch.masks, 7)) if what == "mask" else batch
    assert late.push(one(bad, step=2, stop=False), step=3, rate=1).step == 2
    monkeypatch.setattr(ModelWithLosses, "forward", forward)
    report = one(batch, step=3, stop=False)
    error, message = (
        (DataError, "1280 pixels of the masks of step 3 hold class ids")
        if what == "mask"
        else (IncompleteError, f"the {what} of step 3 is not a finite number")
    )
    with pytest.raises(error, match=message):
        late.push(report, step=4, rate=1)
    after = weights(one)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_fp16_lowers_its_scale_if_gradients_overflow_and_continues():
    one = stepper(precision="fp16", **CALM)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    before = weights(one)
    first = one(batch_of(), step=0, stop=False)
    assert (first.failed_step, first.unknown_pixels, first.scale) == (0, 0, 2.0**60)
    assert not math.isfinite(first.norm)
    assert all(torch.equal(value, before[name]) for name, value in weights(one).items())
    scales = [one(batch_of(), step=step, stop=False).scale.item() for step in range(1, 50)]
    assert scales[-1] < 2.0**60
    assert scales[-1] == scales[-2], "it does not fall for ever"
    assert not all(torch.equal(value, before[name]) for name, value in weights(one).items())


def test_fp16_fails_where_no_scale_helps():
    one = stepper(precision="fp16", **CALM)
    one.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**-25)
    assert one(batch_of(), step=4, stop=False).failed_step == 5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_has_nearly_the_losses_of_full(precision):
    full, half = stepper(**CALM), stepper(**CALM, precision=precision)
    expected = losses(full(batch_of(), step=0, stop=False))
    assert losses(half(batch_of(), step=0, stop=False)) == pytest.approx(expected, rel=0.02, abs=0.02)
    assert all(value.dtype == torch.float32 for value in half.model.parameters())


def test_activations_computed_twice_change_no_bit():
    kept, twice = stepper(), stepper()
    twice.model.checkpoint_activations = True
    for step in range(3):
        batch = batch_of(5, first=step)
        one, other = (each(batch, step=step, stop=False) for each in (kept, twice))
        assert torch.equal(one.losses, other.losses)
        assert one.norm == other.norm
    for name, value in weights(kept).items():
        assert torch.equal(weights(twice)[name], value), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize(
    "changes", [{}, PAIR_LOSSES, {"class_chunk": 1}], ids=["plain", "pair losses", "chunks of classes"]
)
def test_a_compiled_step_has_the_losses_of_a_plain_one(quick_linker, changes):
    small = {**CALM, **changes, "encoder": CALM["encoder"].model_copy(update={"layers": 1}), "decoder_layers": 1}
    plain, compiled = stepper(**small), stepper(**small, compile=True)
    for step in range(2):
        expected = losses(plain(batch_of(first=step), step=step, stop=False))
        found = losses(compiled(batch_of(first=step), step=step, stop=False))
        assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_a_failed_compilation_is_an_error_with_a_hint(monkeypatch):
    settings = SETTINGS.model_copy(update={"compile": True})
    one = stepper()
    one._settings = settings

    def fails(*_):
        raise torch._dynamo.exc.BackendCompilerFailed(print, RuntimeError("no compiler"), None)

    monkeypatch.setattr(one, "_module", fails)
    with pytest.raises(BackendError, match=r"train\.compile: torch cannot compile") as failure:
        one(batch_of(5), step=0, stop=False)
    assert "train.compile=false" in failure.value.hint


def test_the_average_of_the_weights_is_its_formula():
    one = stepper(ema_decay=0.3)
    name, parameter = "prompts.tokens", one.model.prompts.tokens
    expected = parameter.detach().clone()
    for step in range(4):
        one(batch_of(5), step=step, stop=False)
        decay = min(0.3, (2 + step) / (11 + step))
        expected = decay * expected + (1 - decay) * parameter.detach()
    torch.testing.assert_close(one.ema.averages[name], expected)
    assert not torch.allclose(expected, parameter)


def test_classes_that_a_source_does_not_label_are_not_queried_in_its_images():
    """A class that nobody labelled in the second source may be in its background."""
    allowed = np.array([[True, True, True], [False, False, True]])
    one = stepper(**CALM, allowed=allowed, validated=(False, False), sampled_classes=3)
    seen = []
    forward = ModelWithLosses.forward

    def recorded(self, batch, targets, counts):
        seen.append((batch.sources, targets))
        return forward(self, batch, targets, counts)

    ModelWithLosses.forward = recorded
    try:
        one(batch_of(sources=torch.tensor([0, 1, 0, 1, 0, 1])), step=0, stop=False)
    finally:
        ModelWithLosses.forward = forward
    (sources, targets), *_ = seen
    for image, source in enumerate(sources.tolist()):
        for place, position in enumerate(targets.classes[image].tolist()):
            expected = bool(allowed[source, position]) or bool(targets.present[image, place])
            assert bool(targets.asked[image, place]) == expected


def test_a_request_to_stop_is_in_the_steps_outcome():
    one, late = stepper(), Late()
    for step, stop in itertools.islice(enumerate((False, True)), 2):
        late.push(one(batch_of(5), step=step, stop=stop), step=step + 1, rate=0.1)
    outcome = late.flush()
    assert outcome.stop
    assert outcome.step == 2
    assert late.flush() is None
