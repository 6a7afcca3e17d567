"""The template: varied captions for all label lists, and counterfactuals of the same scenes."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.installed_backends import find_backend
from magicseg.labels import Label, load_vocabulary, vocabulary_names
from magicseg.labels.inflect import plural
from magicseg.labels.mentions import names
from magicseg.stages.describe.naming import article, caption_name
from magicseg.stages.describe.scenery import SCENES
from magicseg.stages.describe.template import TemplateCaptioner, draw_setting
from magicseg.stages.describe.token_count import CLIP_TOKENS, count_tokens

VOC = load_vocabulary("voc20").labels
seeds = st.integers(0, 2**63 - 1)


def describe(*labels, seed=0, **options):
    captioner = TemplateCaptioner(None, TemplateCaptioner.Options(**options))
    (answer,) = captioner.describe([DescribeRequest(index=0, labels=labels, seed=seed)])
    return answer


def label(name, *synonyms):
    return Label(id=1, name=name, synonyms=synonyms)


def test_the_entry_point_returns_this_back_end():
    assert find_backend("captioners", "template") is TemplateCaptioner


@pytest.mark.slow
@pytest.mark.parametrize("name", vocabulary_names())
def test_every_shipped_label_gets_a_caption_and_a_counterfactual_of_the_same_scene(name):
    labels = load_vocabulary(name).labels
    for index, one in enumerate(labels):
        for group in ((one,), (one, labels[(index + 37) % len(labels)])):
            answer = describe(*group, seed=index)
            assert isinstance(answer, Description), answer
            for each in group:
                called = f"{re.escape(caption_name(each))}|{re.escape(plural(caption_name(each)))}"
                assert re.search(rf"\b(?:{called})(?!\w)", answer.caption, re.IGNORECASE)
                assert not names(answer.counterfactual, each)
            scene = answer.counterfactual.split(" empty ")[1]
            assert answer.caption.endswith(scene)
            assert not re.search(r"  | ,|,,|_|\(|\ba [aeio]|\ban [bcdfgjklmnpqrstvwxz][a-z]", answer.caption)


@given(seed=seeds)
def test_the_captions_depend_only_on_labels_and_seed(seed):
    captioner = TemplateCaptioner(None, TemplateCaptioner.Options())
    requests = [DescribeRequest(index=i, labels=(VOC[i],), seed=seed) for i in range(3)]
    assert captioner.describe(requests)[::-1] == captioner.describe(requests[::-1])
    assert captioner.describe(requests)[1] == describe(VOC[1], seed=seed)


def test_captions_are_varied():
    answers = [describe(VOC[2], seed=seed) for seed in range(400)]
    assert len({answer.caption for answer in answers}) > 390
    assert len({answer.counterfactual for answer in answers}) > 330
    scenes = {scene.noun for scene in SCENES for answer in answers if scene.noun in answer.counterfactual}
    assert len(scenes) == len(SCENES), "a bird may be anywhere"
    assert any("birds" in answer.caption for answer in answers)


def test_people_are_described_without_colours():
    captions = " ".join(describe(label("person"), seed=seed).caption for seed in range(200))
    assert not re.search(r"\b(?:red|green|black|white|rusty|shiny) (?:person|people)", captions)
    assert "elderly person" in captions


@given(seed=seeds, count=st.integers(3, 8))
def test_many_labels_fit_one_caption(seed, count):
    answer = describe(*VOC[:count], seed=seed)
    assert isinstance(answer, Description)
    assert count_tokens(answer.caption) <= CLIP_TOKENS


def test_long_captions_are_simplified_and_then_rejected():
    plain = describe(VOC[0], VOC[1], seed=3, max_tokens=20)
    assert isinstance(plain, Description)
    assert count_tokens(plain.caption) <= 20 < count_tokens(describe(VOC[0], VOC[1], seed=3).caption)
    assert describe(label("x" * 199), max_tokens=20).reason == "too-long"


def test_a_label_is_never_placed_in_a_scene_that_usually_shows_it():
    for seed in range(100):
        assert "street" not in draw_setting(seed, (label("traffic light"),)).scene.noun
        assert draw_setting(seed, (label("sky"),)).scene.noun not in {s.noun for s in SCENES if s.outdoors}


def test_the_template_avoids_a_label_in_any_spelling():
    spelt = label("back_garden")
    assert {draw_setting(seed, (spelt,)).scene.noun for seed in range(300)} == {
        scene.noun for scene in SCENES if scene.noun != "back garden"
    }


@pytest.mark.parametrize("name", ["empty", "photo", "snapshot", "camera", "field", "light", "left", "edge"])
def test_the_template_avoids_choices_that_name_a_label_or_rejects_the_request(name):
    answers = [describe(label(name), seed=seed) for seed in range(60)]
    if name == "empty":
        assert {answer.reason for answer in answers} == {"counterfactual-names-label"}
    for answer in answers:
        assert isinstance(answer, Rejection) or not re.search(rf"\b{name}\b", answer.counterfactual)


def test_requests_without_labels_or_a_usable_scene_are_rejected_with_a_reason():
    assert describe().reason == "no-labels"
    assert describe(label("scene", *(scene.noun for scene in SCENES))).reason == "no-scene"


def test_the_token_estimate_is_never_below_the_true_count():
    open_clip = pytest.importorskip("open_clip")
    encode = open_clip.tokenizer.SimpleTokenizer().encode
    labels = load_vocabulary("lvis1203").labels
    captions = [describe(one, seed=one.id).caption for one in labels]
    counts = [(count_tokens(caption), len(encode(caption))) for caption in [*captions, "", "Ünïcode 12345 – ok!"]]
    assert all(estimate >= true for estimate, true in counts)
    assert sum(estimate for estimate, _ in counts) < 1.4 * sum(true for _, true in counts)


def test_all_scenes_of_the_template_take_the_article_a():
    assert {article(scene.noun) for scene in SCENES} == {"a"}
