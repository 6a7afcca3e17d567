"""Plurals of class names."""

import pytest

from magicseg.labels import load_vocabulary, vocabulary_names
from magicseg.labels.inflect import plural


@pytest.mark.parametrize(
    ("singular", "expected"),
    [
        ("cat", "cats"),
        ("person", "people"),
        ("Person", "People"),
        ("sheep", "sheep"),
        ("fish", "fish"),
        ("goldfish", "goldfish"),
        ("knife", "knives"),
        ("penknife", "penknives"),
        ("bus", "buses"),
        ("mouse", "mice"),
        ("snowman", "snowmen"),
        ("policewoman", "policewomen"),
        ("ottoman", "ottomans"),
        ("brush", "brushes"),
        ("watch", "watches"),
        ("stomach", "stomachs"),
        ("cherry", "cherries"),
        ("monkey", "monkeys"),
        ("potato", "potatoes"),
        ("photo", "photos"),
        ("lens", "lenses"),
        ("axis", "axes"),
        ("iris", "irises"),
        ("menu", "menus"),
        ("TV", "TVs"),
        ("café", "cafés"),
        ("dining table", "dining tables"),
        ("hot-air balloon", "hot-air balloons"),
        ("can of soup", "cans of soup"),
        ("man-of-war", "men-of-war"),
        ("walk-in closet", "walk-in closets"),
        ("汽车", "汽车"),
    ],
)
def test_the_head_noun_takes_the_plural(singular, expected):
    assert plural(singular) == expected


@pytest.mark.parametrize("word", ["scissors", "skis", "taxis", "sunglasses", "menus", "mice", "snowmen", "people"])
def test_the_plural_of_a_plural_is_unchanged(word):
    assert plural(word) == word


@pytest.mark.parametrize("name", vocabulary_names())
def test_pluralising_a_plural_of_a_shipped_form_changes_nothing(name):
    forms = {form for label in load_vocabulary(name).labels for form in label.forms}
    assert [form for form in forms if plural(plural(form)) != plural(form)] == []
