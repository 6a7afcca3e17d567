"""The grammar: captions name their labels, and counterfactuals do not."""

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.installed_backends import find_backend
from magicseg.labels import Label, load_vocabulary, vocabulary_names
from magicseg.labels.mentions import names
from magicseg.miniature.caption import NOUNS, parse
from magicseg.stages.describe.grammar import GrammarCaptioner
from magicseg.stages.describe.naming import article, caption_name, takes_article
from magicseg.stages.describe.words import LIGHTS, PLACES, SCENES

CAPTIONER = GrammarCaptioner(None, GrammarCaptioner.Options())
MINIATURE = load_vocabulary("miniature").labels
seeds = st.integers(0, 2**64 - 1)


def describe(*labels, seed=0):
    (answer,) = CAPTIONER.describe([DescribeRequest(index=0, labels=labels, seed=seed)])
    return answer


def label(name, *synonyms):
    return Label(id=1, name=name, synonyms=synonyms)


def test_the_entry_point_returns_this_back_end():
    assert find_backend("captioners", "grammar") is GrammarCaptioner


@pytest.mark.parametrize("name", vocabulary_names())
def test_each_shipped_label_is_named_by_its_caption_and_not_by_the_counterfactual(name):
    labels = load_vocabulary(name).labels
    groups = [(one,) for one in labels]
    groups += [(one, other) for one, other in pairwise(labels)]
    requests = [DescribeRequest(index=i, labels=group, seed=i) for i, group in enumerate(groups)]
    for request, answer in zip(requests, CAPTIONER.describe(requests), strict=True):
        assert isinstance(answer, Description), answer
        for one in request.labels:
            assert re.search(rf"\b{re.escape(one.text)}(?!\w)", answer.caption, re.IGNORECASE)
            assert not names(answer.counterfactual, one)
        assert answer.quality == {"words": len(answer.caption.split())}
        assert "  " not in answer.caption


@given(seed=seeds, count=st.integers(1, 3), first=st.integers(0, 9))
def test_the_painter_can_parse_all_captions_of_the_grammar(seed, count, first):
    labels = tuple(MINIATURE[(first + 3 * step) % 10] for step in range(count))
    answer = describe(*labels, seed=seed)
    spec, bare = parse(answer.caption), parse(answer.counterfactual)
    assert tuple(item.noun for item in spec.objects) == tuple(one.name for one in labels)
    assert len({item.place for item in spec.objects}) == count
    assert None not in {(item.colour and item.size and item.place) for item in spec.objects}
    assert bare.objects == ()
    assert (bare.scene, bare.light) == (spec.scene, spec.light)


@given(seed=seeds)
def test_the_captions_depend_only_on_labels_and_seed(seed):
    alone = describe(MINIATURE[3], seed=seed)
    requests = [DescribeRequest(index=i, labels=(MINIATURE[3 - i],), seed=seed + i) for i in range(3)]
    assert CAPTIONER.describe(requests)[0] == alone
    assert CAPTIONER.describe(requests[::-1])[-1] == alone


def test_the_grammar_uses_each_of_its_choices():
    specs = [parse(describe(MINIATURE[0], seed=seed).caption) for seed in range(400)]
    assert {spec.scene for spec in specs} == {scene.word for scene in SCENES}
    assert {spec.light for spec in specs} == {light.word for light in LIGHTS}
    assert {spec.objects[0].place for spec in specs} == {place.word for place in PLACES}


@pytest.mark.parametrize("name", ["street", "photo", "picture", "orange", "night", "left", "room", "fog"])
def test_the_grammar_avoids_choices_that_name_a_label(name):
    for seed in range(60):
        answer = describe(label(name), label("dog"), seed=seed)
        assert isinstance(answer, Description)
        assert len(re.findall(rf"\b{name}\b", answer.caption)) == 1
        assert not re.search(rf"\b{name}\b", answer.counterfactual)


def test_a_scene_that_usually_shows_the_label_is_not_used():
    scenes = {parse(describe(label("sky"), seed=seed).counterfactual).scene for seed in range(100)}
    assert scenes == {"street", "room"}


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        ((), "no-labels"),
        (MINIATURE[:4], "too-many-labels"),
        ((label("scene", *(scene.word for scene in SCENES)),), "no-scene"),
        ((label("empty"),), "counterfactual-names-label"),
    ],
)
def test_requests_that_cannot_be_described_are_rejected_with_a_reason(labels, reason):
    answer = describe(*labels)
    assert isinstance(answer, Rejection)
    assert answer.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        *("a car", "a unicycle", "a urinal", "a TV set", "a Lego", "a one-armed bandit", "a euro", "a ukulele"),
        *("an umbrella", "an hourglass", "an urn", "an SUV", "an X-ray", "an orange cup", "an Inuit drum"),
    ],
)
def test_articles_follow_the_sound_of_the_first_word(text):
    expected, rest = text.split(" ", 1)
    assert article(rest) == expected


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("scissors", False),
        ("bread", False),
        ("water", False),
        ("orange juice", False),
        ("goldfish", True),
        ("sheep", True),
        ("cup", True),
    ],
)
def test_plurals_and_uncountable_nouns_take_no_article(noun, expected):
    assert takes_article(noun) is expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mouse (computer equipment)", "computer mouse"),
        ("glass (drink container)", "drinking glass"),
        ("bow (weapon)", "bow"),
        ("railcar (part of a train)", "railcar"),
        ("trash can", "trash can"),
    ],
)
def test_a_homonym_is_named_by_its_distinguishing_synonym(name, expected):
    assert caption_name(load_vocabulary("lvis1203").by_name(name)) == expected


def test_the_painter_knows_all_ten_labels():
    assert tuple(one.name for one in MINIATURE) == NOUNS
