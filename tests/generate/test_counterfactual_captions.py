"""What becomes of a caption when its classes are taken out."""

from itertools import cycle

import pytest

from magicseg.backends import GenerateRequest, Rejection
from magicseg.labels import Label, load_vocabulary
from magicseg.labels.inflect import plural
from magicseg.labels.mentions import names
from magicseg.labels.vocabulary import split_qualifier
from magicseg.stages.generate.counterfactual_caption import counterfactual_caption, replace_labels


def label(name, *synonyms, id=1):
    return Label(id=id, name=name, synonyms=synonyms, qualifier=split_qualifier(name)[1])


def ask(caption, *labels, counterfactual="an empty street", method="replace"):
    request = GenerateRequest(index=0, labels=labels, caption=caption, counterfactual=counterfactual, seed=0)
    return counterfactual_caption(request, method)


@pytest.mark.parametrize(
    ("caption", "labels", "expected"),
    [
        ("A cat on a mat", [label("cat")], "A nothing on a mat"),
        ("CATS and a Cat's tail", [label("cat")], "nothing and a nothing's tail"),
        ("a catalogue of bobcats", [label("cat")], "a catalogue of bobcats"),
        ("two geese by a lake", [label("goose")], "two nothing by a lake"),
        ("an aeroplane above", [label("airplane", "aeroplane")], "an nothing above"),
        ("a bow (weapon) on a wall", [label("bow (weapon)")], "a nothing on a wall"),
        ("a bow on a wall", [label("bow (weapon)")], "a nothing on a wall"),
        ("bows ( Weapon ) on a wall", [label("bow (weapon)")], "nothing on a wall"),
        ("an aerosol_can, an aerosol-can, aerosol  cans", [label("aerosol can")], "an nothing, an nothing, nothing"),
        ("a T-shirt and a t shirt", [label("T-shirt")], "a nothing and a nothing"),
        ("a hot dog and a dog", [label("dog"), label("hot dog", id=2)], "a nothing and a nothing"),
        ("cans of soup", [label("can of soup")], "nothing of soup"[:7]),
        ("a cat-like dog_house", [label("cat"), label("dog", id=2)], "a nothing-like nothing_house"),
        ("a child’s shoe", [label("child's shoe")], "a nothing"),
    ],
)
def test_names_plurals_and_synonyms_become_nothing(caption, labels, expected):
    assert replace_labels(caption, labels) == expected


def test_every_lvis_name_and_its_plural_and_synonyms_are_replaced():
    vocabulary = load_vocabulary("lvis1203")
    texts = cycle(["a photo of a {}.", "{} IN THE RAIN", "Many old {}, on a table"])
    assert len(vocabulary) == 1203
    for item in vocabulary.labels:
        for form in (item.name, item.name.upper(), item.name.replace(" ", "_"), *item.forms, plural(item.text)):
            caption = next(texts).format(form)
            answer = ask(caption, item)
            assert isinstance(answer, str), f"{item.name!r} in {caption!r}: {answer}"
            assert answer != caption
            assert "nothing" in answer
            assert not names(answer, item), f"{item.name!r} is left in {answer!r}"
            assert "(" not in answer, answer


def test_a_text_that_would_not_change_is_refused():
    assert ask("a dog", label("cat")) == Rejection(reason="label-not-in-caption", detail="'cat' in 'a dog'")
    assert ask("nothing here", label("nothing")).reason == "counterfactual-unchanged"


def test_one_label_of_two_that_is_missing_is_refused():
    assert ask("a dog on a street", label("dog"), label("cat", id=2)).reason == "label-not-in-caption"


def test_rewrite_takes_the_captioners_scene_and_refuses_one_that_is_none():
    cat = label("cat")
    assert ask("a cat on a street", cat, method="rewrite") == "an empty street"
    same = ask("a cat on a street", cat, counterfactual="A cat  on a street", method="rewrite")
    assert same.reason == "counterfactual-unchanged"
    named = ask("a cat on a street", cat, counterfactual="a street without cats", method="rewrite")
    assert named.reason == "counterfactual-names-label"
