"""The painter: images show the caption's objects, and equal seeds give equal pixels."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from magicseg.backends import GenerateRequest, ImagePair, Rejection
from magicseg.core.errors import LabelError
from magicseg.installed_backends import find_backend
from magicseg.labels import Label, load_vocabulary
from magicseg.miniature.caption import NOUNS, ObjectSpec, SceneSpec, UnreadableCaption, parse
from magicseg.miniature.painter import Painter, paint
from magicseg.stages.describe.words import COLOURS, LIGHTS, PLACES, SCENES, SIZES

LABELS = load_vocabulary("miniature").labels
BY_NAME = {label.name: label for label in LABELS}

specs = st.builds(
    SceneSpec,
    scene=st.sampled_from([scene.word for scene in SCENES]),
    light=st.sampled_from([None, *(light.word for light in LIGHTS)]),
    objects=st.lists(
        st.builds(
            ObjectSpec,
            noun=st.sampled_from(NOUNS),
            colour=st.sampled_from([None, *COLOURS]),
            size=st.sampled_from([None, *SIZES]),
            place=st.sampled_from([None, *(place.word for place in PLACES)]),
        ),
        max_size=3,
    ).map(tuple),
)
seeds = st.integers(0, 2**64 - 1)


def request(caption, counterfactual="an empty beach at noon", labels=("car",), seed=7, index=0):
    found = tuple(BY_NAME.get(name, Label(id=99, name=name)) for name in labels)
    return GenerateRequest(index=index, labels=found, caption=caption, counterfactual=counterfactual, seed=seed)


def painter(size=48, **options):
    return Painter(SimpleNamespace(size=size), Painter.Options(**options))


def test_the_entry_point_returns_this_back_end():
    assert find_backend("generators", "painter") is Painter


def test_parse_returns_all_attributes_of_a_caption():
    assert parse("A small red car on the left and a large blue boat in the middle, by a lake at dusk") == (
        SceneSpec(
            scene="lake",
            light="dusk",
            objects=(
                ObjectSpec(noun="car", colour="red", size="small", place="left"),
                ObjectSpec(noun="boat", colour="blue", size="large", place="middle"),
            ),
        )
    )


@pytest.mark.parametrize(
    ("caption", "reason"),
    [
        ("a zebra on a beach", "unknown word 'zebra'"),
        ("a red car", "no scene"),
        ("a car on a beach in a desert", "two scenes"),
        ("a red blue car on a beach", "two colours"),
        ("on a red beach", "'red' belongs to no object"),
        ("on the left a car on a beach", "'left' comes before any object"),
        ("", "no scene"),
    ],
)
def test_a_caption_that_cannot_be_read_is_refused_with_the_reason(caption, reason):
    with pytest.raises(UnreadableCaption, match=reason):
        parse(caption)


@pytest.mark.slow
def test_the_mask_is_at_the_captions_place_for_all_labels_colours_and_scenes():
    for label in LABELS:
        for number, colour in enumerate(COLOURS):
            for place in PLACES:
                for scene in SCENES:
                    caption = f"a {SIZES[number % 3]} {colour} {label.name} {place.text}, {scene.text}"
                    mask = paint(caption, seed=number, size=32, labels=LABELS).mask
                    assert set(np.unique(mask)) == {0, label.id}, caption
                    centre = np.nonzero(mask)[1].mean() / 32
                    low, high = {"left": (0, 0.5), "middle": (0.3, 0.7), "right": (0.5, 1)}[place.word]
                    assert low < centre < high, caption


@settings(max_examples=40)
@given(spec=specs, seed=seeds, size=st.sampled_from([16, 33, 64]))
def test_equal_arguments_give_equal_pixels_of_the_right_shape_and_type(spec, seed, size):
    first = paint(spec, seed=seed, size=size, labels=LABELS)
    again = paint(spec, seed=seed, size=size, labels=LABELS)
    assert first.image.shape == first.empty.shape == (size, size, 3)
    assert first.mask.shape == (size, size)
    assert (first.image.dtype, first.empty.dtype, first.mask.dtype) == (np.uint8, np.uint8, np.uint16)
    for name in ("image", "empty", "mask"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert set(np.unique(first.mask)) <= {0, *(BY_NAME[item.noun].id for item in spec.objects)}
    if not spec.objects:
        np.testing.assert_array_equal(first.image, first.empty)


@settings(max_examples=30)
@given(seed=seeds, scene=st.sampled_from(SCENES), noun=st.sampled_from(NOUNS))
def test_both_images_of_a_pair_are_equal_far_from_the_object(seed, scene, noun):
    pair = paint(f"a large red {noun} on the left, {scene.text}", seed=seed, size=64, labels=LABELS)
    np.testing.assert_array_equal(pair.image[:, 58:], pair.empty[:, 58:])
    inside = pair.mask > 0
    assert np.abs(pair.image.astype(int) - pair.empty)[inside].mean() > 15
    bare = paint(f"an empty {scene.word}", seed=seed, size=64, labels=LABELS)
    np.testing.assert_array_equal(bare.image, pair.empty)


def test_different_seeds_give_different_images():
    captions = ["a red car on a beach"] * 8
    images = {paint(c, seed=seed, size=32, labels=LABELS).image.tobytes() for seed, c in enumerate(captions)}
    assert len(images) == 8


def test_two_objects_are_both_visible_and_hardly_overlap():
    seen = []
    for seed in range(60):
        one, other = LABELS[seed % 10], LABELS[(seed + 1 + seed // 10) % 10]
        pair = paint(f"a large {one.name} and a large {other.name} on a beach", seed=seed, labels=LABELS)
        alone = paint(f"a large {one.name} and a large {other.name} on a beach", seed=seed, labels=LABELS, noise=0)
        np.testing.assert_array_equal(pair.mask, alone.mask)
        seen += [(pair.mask == label.id).sum() for label in (one, other)]
    assert min(seen) > 40  # pixels of 4096


def test_an_object_without_a_label_is_an_error_that_names_it():
    with pytest.raises(LabelError, match="'boat'"):
        paint("a boat on a beach", seed=0, labels=[BY_NAME["car"]])


def test_a_pair_is_independent_of_its_batch():
    requests = [
        request(f"a {label.name} on a beach", labels=(label.name,), seed=index, index=index)
        for index, label in enumerate(LABELS)
    ]
    together = painter().generate(requests)
    for one, answer in zip(requests[::-1], together[::-1], strict=True):
        (alone,) = painter().generate([one])
        np.testing.assert_array_equal(alone.image, answer.image)
        np.testing.assert_array_equal(alone.counterfactual, answer.counterfactual)


def test_the_counterfactual_is_painted_from_its_own_caption():
    same, other_scene, still_there = painter().generate(
        [
            request("a car on a beach at noon", "an empty beach at noon"),
            request("a car on a beach at noon", "an empty desert at noon"),
            request("a car on a beach at noon", "a car on a beach at noon"),
        ]
    )
    expected = paint("an empty beach at noon", seed=7, size=48, labels=LABELS).image
    np.testing.assert_array_equal(same.counterfactual, expected)
    desert = paint("an empty desert at noon", seed=7, size=48, labels=LABELS).image
    np.testing.assert_array_equal(other_scene.counterfactual, desert)
    np.testing.assert_array_equal(still_there.counterfactual, still_there.image)


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (request("a zebra on a beach", labels=("zebra",)), "no drawing of 'zebra'"),
        (request("a striped car on a beach"), "unknown word 'striped'"),
        (request("a car on a beach", "nothing on a beach"), "unknown word 'nothing'"),
    ],
)
def test_requests_that_cannot_be_painted_are_rejected_and_the_others_are_painted(bad, detail):
    first, second = painter().generate([bad, request("a car on a beach")])
    assert isinstance(first, Rejection)
    assert first.reason == "cannot-paint"
    assert detail in first.detail
    assert isinstance(second, ImagePair)


def test_noise_and_image_size_follow_the_settings():
    (quiet,) = painter(size=20, noise=0, supersampling=2).generate([request("a car on a beach at noon")])
    (loud,) = painter(size=20, noise=20, supersampling=2).generate([request("a car on a beach at noon")])
    assert quiet.image.shape == (20, 20, 3)
    assert np.abs(quiet.counterfactual.astype(int) - loud.counterfactual).mean() > 5
