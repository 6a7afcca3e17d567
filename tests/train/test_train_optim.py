"""Parameter groups and the learning rate."""

import pytest

from magicseg.model.segmenter import build_segmenter
from magicseg.train.optimizer import build_optimizer, learning_rate, set_learning_rate


def test_every_parameter_is_in_one_group_and_only_matrices_decay(settings):
    model = build_segmenter(settings.model, seed=0)
    optimizer = build_optimizer(model, settings)
    names = {id(value): name for name, value in model.named_parameters()}
    decayed, scale = {}, {}
    for group in optimizer.param_groups:
        for value in group["params"]:
            assert names[id(value)] not in decayed
            decayed[names[id(value)]] = group["weight_decay"]
            scale[names[id(value)]] = group["scale"]
    assert decayed.keys() == {name for name, _ in model.named_parameters()}
    for name in ("encoder.norm.weight", "decoder.query.bias", "prompts.tokens", "encoder.positions"):
        assert decayed[name] == 0
    assert decayed["decoder.query.weight"] == settings.weight_decay
    assert {name: factor for name, factor in scale.items() if factor == 1}.keys() == {
        name for name in decayed if name.startswith("encoder.")
    }
    assert scale["prompts.tokens"] == scale["decoder.query.weight"] == settings.new_layer_lr_multiplier


def test_a_frozen_encoder_is_left_out(settings):
    frozen = settings.model_copy(update={"encoder": settings.encoder.model_copy(update={"freeze": True})})
    optimizer = build_optimizer(build_segmenter(frozen.model, seed=0), frozen)
    assert {group["scale"] for group in optimizer.param_groups} == {settings.new_layer_lr_multiplier}


def test_the_learning_rate_warms_up_and_decays_to_its_minimum(settings):
    plan = settings.model_copy(
        update={
            "steps": 110,
            "warmup_steps": 10,
            "learning_rate": 1.0,
            "min_learning_rate": 0.1,
            "poly_power": 1.0,
        }
    )
    assert [learning_rate(step, plan) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(60, plan) == pytest.approx(0.55)
    assert learning_rate(110, plan) == pytest.approx(0.1)


def test_new_layers_learn_faster(settings):
    optimizer = build_optimizer(build_segmenter(settings.model, seed=0), settings)
    set_learning_rate(optimizer, 3, settings)
    assert {group["lr"] for group in optimizer.param_groups} == {
        learning_rate(3, settings) * factor for factor in (1, settings.new_layer_lr_multiplier)
    }
