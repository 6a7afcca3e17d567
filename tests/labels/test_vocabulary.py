"""The data classes Label and Vocabulary, and the shipped vocabularies."""

import pickle
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.errors import ConfigError, LabelError
from magicseg.labels import BACKGROUND, IGNORE, Label, Vocabulary, load_templates, load_vocabulary, vocabulary_names


def vocabulary(*names, **others):
    labels = tuple(Label(id=number, name=name) for number, name in enumerate(names, start=1))
    return Vocabulary(name="test", labels=labels, **others)


def test_forms_are_text_and_synonyms_and_their_plurals_without_qualifiers():
    label = Label(id=1, name="cab (taxi)", qualifier="taxi", synonyms=("taxi", "hackney (carriage)"))
    assert label.text == "cab"
    assert label.forms == ("cab", "taxi", "hackney", "cabs", "taxis", "hackneys")


def test_a_form_equal_to_its_plural_is_listed_once():
    assert Label(id=1, name="sheep").forms == ("sheep",)


@pytest.mark.parametrize(
    ("name", "labels", "background"),
    [
        ("voc20", 20, None),
        ("voc21", 20, ("background",)),
        ("context59", 59, None),
        ("context60", 59, ("background",)),
        ("coco80", 80, None),
        ("coco-object", 80, ("background",)),
        ("coco-stuff", 171, None),
        ("ade20k", 150, None),
        ("cityscapes", 19, None),
        ("lvis1203", 1203, None),
        ("miniature", 10, None),
    ],
)
def test_shipped_vocabularies_have_their_size_and_background(name, labels, background):
    shipped = load_vocabulary(name)
    assert (shipped.name, len(shipped), shipped.background) == (name, labels, background)
    assert [label.id for label in shipped.labels] == list(range(1, labels + 1))
    assert shipped.source


def test_every_shipped_vocabulary_is_tested_above():
    assert len(vocabulary_names()) == 11


def test_homonyms_in_lvis_have_different_qualifiers():
    weapon, ribbons = (load_vocabulary("lvis1203").by_id(number) for number in (136, 137))
    assert weapon.name != ribbons.name
    assert weapon.text == ribbons.text == "bow"
    assert (weapon.qualifier, ribbons.qualifier) == ("weapon", "decorative ribbons")


def test_lvis_names_contain_no_underscores_or_other_formatting():
    for label in load_vocabulary("lvis1203").labels:
        for text in (label.text, *label.synonyms):
            assert not set(text) & set("_/:()"), label


def test_background_and_ignore_values_are_not_label_ids():
    for value in (BACKGROUND, IGNORE):
        with pytest.raises(LabelError, match=f"no label {value}: its ids are 1 to 1203"):
            load_vocabulary("lvis1203").by_id(value)


def test_labels_are_found_by_name_in_any_case_and_white_space():
    coco = load_vocabulary("coco80")
    assert coco.by_name("  Dining   TABLE ").id == coco.names.index("dining table") + 1


def test_an_unknown_label_name_gives_the_most_similar_names():
    with pytest.raises(LabelError, match="no label 'brocoli'") as caught:
        load_vocabulary("coco80").by_name("brocoli")
    assert "broccoli" in (caught.value.hint or "")


def test_a_vocabulary_refuses_duplicate_names_id_gaps_and_no_labels():
    with pytest.raises(LabelError, match="names both 1 and 2"):
        vocabulary("cat", "CAT")
    with pytest.raises(LabelError, match="has id 3, not 2"):
        Vocabulary(name="test", labels=(Label(id=1, name="cat"), Label(id=3, name="dog")))
    with pytest.raises(LabelError, match="no labels"):
        vocabulary()


@pytest.mark.parametrize("name", vocabulary_names())
def test_a_vocabulary_survives_pickling_and_plain_values(name):
    shipped = load_vocabulary(name)
    for copy in (pickle.loads(pickle.dumps(shipped)), Vocabulary.from_dict(shipped.to_dict())):
        assert copy == shipped
        assert hash(copy) == hash(shipped)
        assert copy.digest() == shipped.digest()


@pytest.mark.parametrize("change", ["labels", "name", "background", "source"])
def test_incomplete_data_is_refused_as_a_vocabulary(change):
    values = vocabulary("cat").to_dict()
    del values[change]
    with pytest.raises(LabelError, match=f"malformed vocabulary.*{change}"):
        Vocabulary.from_dict(values)


def test_the_digest_depends_only_on_labels_and_background():
    base = vocabulary("cat", "dog")
    same = Vocabulary(name="other", labels=base.labels, source="elsewhere")
    assert same.digest() == base.digest()
    changed = [
        vocabulary("dog", "cat"),
        vocabulary("cat", "Dog"),
        vocabulary("cat", "dog", background=("background",)),
        Vocabulary(name="test", labels=(base.labels[0], Label(id=2, name="dog", synonyms=("hound",)))),
    ]
    assert len({base.digest(), *(other.digest() for other in changed)}) == 5


def test_the_digest_of_a_vocabulary_never_changes():
    assert vocabulary("cat", "dog").digest() == "65cec490bf01887527303f0c03d96eee60e16c05446322bd2bb311123484b423"


@given(st.permutations(["cat", "dog", "bird"]))
def test_ids_follow_the_order_of_the_names(order):
    assert [vocabulary(*order).by_name(name).id for name in order] == [1, 2, 3]


def test_templates_have_one_placeholder_for_the_class():
    assert load_templates("photo") == ("a photo of a {}.",)
    ensemble = load_templates("ensemble")
    assert len(set(ensemble)) == len(ensemble) > 5
    for template in ensemble:
        assert template.format("kite").count("kite") == 1


def test_an_unknown_set_of_templates_is_refused():
    with pytest.raises(ConfigError, match="'fotos'") as caught:
        load_templates("fotos")
    assert "ensemble, photo" in (caught.value.hint or "")


def test_labels_load_without_numerical_libraries():
    code = (
        "import sys; from magicseg.labels import load_vocabulary; load_vocabulary('lvis1203')\n"
        "sys.exit(len({'torch', 'zarr', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
