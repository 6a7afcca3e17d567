"""User-supplied label lists: accepted formats, and errors that name file and line."""

import unicodedata

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from magicseg.core.errors import LabelError
from magicseg.labels import load_vocabulary
from magicseg.labels.vocabulary import MAX_LABELS, name_key
from magicseg.labels.vocabulary_files import MAX_NAME, _parse


def load(tmp_path, content, suffix=".txt"):
    path = tmp_path / f"classes{suffix}"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_vocabulary(path.name, base=tmp_path)


def refusal(tmp_path, content, suffix=".txt"):
    with pytest.raises(LabelError) as caught:
        load(tmp_path, content, suffix)
    message = str(caught.value)
    assert f"classes{suffix}" in message
    return message.split(f"classes{suffix}:", 1)[1]


def described(vocabulary):
    return [(label.name, label.synonyms, label.qualifier) for label in vocabulary.labels]


def test_a_text_file_has_a_label_per_line_and_synonyms_after_commas(tmp_path):
    text = "# my classes\n\ntench, Tinca tinca\r\n  hot   dog  \n\tbow (weapon, wooden), longbow\nC# book\n"
    assert described(load(tmp_path, text)) == [
        ("tench", ("Tinca tinca",), None),
        ("hot dog", (), None),
        ("bow (weapon, wooden)", ("longbow",), "weapon, wooden"),
        ("C# book", (), None),
    ]


def test_a_yaml_file_has_three_equivalent_forms(tmp_path):
    plain = load(tmp_path, "tench, Tinca tinca\ncat\n")
    listed = load(tmp_path, "- tench, Tinca tinca\n- cat\n", ".yaml")
    mapped = load(tmp_path, "- {name: tench, synonyms: [Tinca tinca]}\n- cat\n", ".yml")
    headed = load(tmp_path, "source: mine\nlabels:\n- {name: tench, synonyms: [Tinca tinca]}\n- cat\n", ".yaml")
    assert plain.labels == listed.labels == mapped.labels == headed.labels
    assert plain.digest() == listed.digest() == mapped.digest() == headed.digest()
    assert (plain.name, plain.source, headed.source) == ("classes", "classes.txt", "mine")


def test_a_yaml_file_may_name_the_background(tmp_path):
    loaded = load(tmp_path, "background: [background, sky]\nlabels: [cat]\n", ".yaml")
    assert loaded.background == ("background", "sky")


def test_a_byte_order_mark_is_not_part_of_the_first_name(tmp_path):
    assert load(tmp_path, b"\xef\xbb\xbfcat\ndog\n").names == ("cat", "dog")


def test_letters_are_composed_so_that_equal_looking_names_are_equal(tmp_path):
    assert load(tmp_path, "cafe\u0301\n").names == ("caf\u00e9",)


def test_synonyms_are_kept_once_and_may_be_shared_between_labels(tmp_path):
    loaded = load(tmp_path, "couch, sofa, Sofa, COUCH\nsettee, sofa\n")
    assert described(loaded) == [("couch", ("sofa",), None), ("settee", ("sofa",), None)]


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("cat\ndog\ncat\n", 3, "label 'cat' is already on line 1"),
        ("cat\n# dog\n\n CAT \n", 4, "label 'CAT' is already on line 1"),
        ("hot dog\nhot   dog\n", 2, "already on line 1"),
        ("stra\u00dfe\nSTRASSE\n", 2, "already on line 1"),
        ("cat\n, dog\n", 2, "a name is empty"),
        ("cat\ndog,\n", 2, "a synonym of 'dog' is empty"),
        ("cat\nd\x00og\n", 2, "control character U+0000"),
        ("cat\ndog\thound\n", 2, "control character U+0009"),
        ("cat\rdog\n", 1, "control character U+000D"),
        ("cat\ncat\u200b\n", 2, "control character U+200B"),
        ("cat\n\u202egod\n", 2, "control character U+202E"),
        ("cat\n" + "x" * (MAX_NAME + 1), 2, f"has {MAX_NAME + 1} characters"),
        (b"cat\nd\xf6g\n", 2, "not UTF-8"),
        ("cat\n".encode("utf-16"), 1, "not UTF-8"),
    ],
)
def test_a_malformed_line_is_named_by_number(tmp_path, content, line, message):
    found = refusal(tmp_path, content)
    assert found.startswith(f"{line}: ")
    assert message in found


@pytest.mark.parametrize(
    ("content", "line", "message"),
    [
        ("- cat\n- dog\n- Cat\n", 3, "label 'Cat' is already on line 1"),
        ("- cat\n- {name: dog, synonyms: [hound, '']}\n", 2, "a synonym of 'dog' is empty"),
        ("- cat\n-\n", 2, "YAML reads '' as null"),
        ("- cat\n- no\n", 2, "YAML reads 'no' as bool"),
        ("- cat\n- 7\n", 2, "YAML reads '7' as int"),
        ('- cat\n- "d\\u0000og"\n', 2, "control character U+0000"),
        ("- cat\n- d\x07og\n", 2, "control character U+0007"),
        ("- cat\n- [dog]\n", 2, "a list or a mapping where a name"),
        ("- cat\n- {nmae: dog}\n", 2, "the key 'nmae' is unknown"),
        ("- cat\n- {name: dog, name: hound}\n", 2, "the key 'name' is twice"),
        ("- cat\n- {synonyms: [dog]}\n", 2, "the key 'name' is missing"),
        ("- cat\n- {name: dog, synonyms: hound}\n", 2, "a list is expected"),
        ("- cat\n- {name: dog\n", 3, "not YAML"),
        ("- cat\n- !!python/object:os.system dog\n", 2, "not as text"),
        ("cat\n", 1, "a list is expected"),
        ("- cat\n---\n- dog\n", 2, "not YAML"),
        ("- cat\n- *dog\n", 2, "not YAML"),
        ("[" * 100_000, 1, "nested too deeply"),
    ],
)
def test_a_malformed_yaml_item_is_named_by_line(tmp_path, content, line, message):
    found = refusal(tmp_path, content, ".yaml")
    assert found.startswith(f"{line}: ")
    assert message in found


@pytest.mark.parametrize(
    ("content", "suffix"), [("", ".txt"), ("# none\n\n", ".txt"), ("", ".yaml"), ("[]", ".yaml")]
)
def test_a_list_without_labels_is_refused(tmp_path, content, suffix):
    assert "no labels" in refusal(tmp_path, content, suffix)


def test_duplicate_names_are_refused_with_a_hint_about_qualifiers(tmp_path):
    with pytest.raises(LabelError) as caught:
        load(tmp_path, "crane\ncrane\n")
    assert "crane (...)" in (caught.value.hint or "")


def test_a_list_may_have_as_many_labels_as_pixel_values(tmp_path):
    lines = [f"label {number}\n" for number in range(MAX_LABELS + 1)]
    assert len(load(tmp_path, "".join(lines[:-1]))) == 65534
    assert refusal(tmp_path, "".join(lines)).startswith("65535: there are more than 65534 labels")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(LabelError, match=r"nowhere\.txt: the label list cannot be read: No such file"):
        load_vocabulary("nowhere.txt", base=tmp_path)


def test_a_folder_as_label_list_is_refused(tmp_path):
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(LabelError, match=r"folder\.yaml: is not a regular file"):
        load_vocabulary("folder.yaml", base=tmp_path)


def test_an_unknown_vocabulary_gives_the_most_similar_and_all_names():
    with pytest.raises(LabelError, match=r"no vocabulary 'VOC-20'; did you mean 'voc20'\?") as caught:
        load_vocabulary("VOC-20")
    assert "lvis1203" in (caught.value.hint or "")


plain_name = st.from_regex(r"[a-zA-Zéßж0-9][a-zA-Zéßж0-9 ().'-]{0,20}", fullmatch=True)
entries = st.lists(
    st.tuples(plain_name, st.lists(plain_name, max_size=3)), min_size=1, unique_by=lambda entry: name_key(entry[0])
)


@given(entries)
def test_both_formats_keep_every_name_in_its_order(entries):
    document = [{"name": name, "synonyms": synonyms} for name, synonyms in entries]
    content = yaml.safe_dump(document, allow_unicode=True).encode()
    loaded = _parse(content, path="x.yaml", name="x", source="x")
    assert list(map(name_key, loaded.names)) == [name_key(name) for name, _ in entries]
    # Labels written in the text format are read back unchanged.
    if not any("(" in text or ")" in text for name, synonyms in entries for text in (name, *synonyms)):
        lines = "\n".join(", ".join([label.name, *label.synonyms]) for label in loaded.labels)
        assert _parse(lines.encode(), path="x.txt", name="x", source="x").labels == loaded.labels


@given(st.text() | st.binary(), st.sampled_from(["x.txt", "x.yaml"]))
def test_any_file_content_gives_a_vocabulary_or_a_label_error(content, path):
    raw = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    try:
        loaded = _parse(raw, path=path, name="x", source="x")
    except LabelError:
        return
    assert len({name_key(name) for name in loaded.names}) == len(loaded) > 0
    for label in loaded.labels:
        assert all(form.strip() == form for form in label.forms)
        assert not any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in label.name)
