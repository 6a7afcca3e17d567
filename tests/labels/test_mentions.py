"""Matching of labels in text, as captioners, checks of answers and counterfactuals use it."""

import pytest

from magicseg.labels import Label
from magicseg.labels.mentions import names
from magicseg.labels.vocabulary import split_qualifier


def label(name, *synonyms):
    return Label(id=1, name=name, synonyms=synonyms, qualifier=split_qualifier(name)[1])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Two Boats by a lake", label("boat")),
        ("an automobile", label("car", "automobile")),
        ("a hot-dog stand", label("hot dog")),
        ("a hot dog stand", label("hot-dog")),
        ("HOT_DOGS", label("hot dog")),
        ("a dog_house", label("dog")),
        ("a child’s shoe", label("child's shoe")),
        ("a bow on a wall", label("bow (weapon)")),
    ],
)
def test_names_synonyms_and_plurals_match_in_any_case_and_spacing(text, named):
    assert names(text, named)


@pytest.mark.parametrize(
    ("text", "other"), [("a carpet", label("car")), ("a hotdog", label("hot dog")), ("a bobcat", label("cat"))]
)
def test_parts_of_words_do_not_match_a_label(text, other):
    assert not names(text, other)
