"""Answers of language models are parsed strictly, and their content is checked."""

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from magicseg.labels import Label, load_vocabulary
from magicseg.stages.describe.answer import Draft, UnusableAnswer, check_draft, read_answer
from magicseg.stages.describe.instructions import echoes_prompt, write_prompt

CAT = Label(id=1, name="cat", synonyms=("feline",))
DOG = Label(id=2, name="dog")
HOT_DOG = Label(id=3, name="hot dog")
GOOD = Draft("A grey cat on a red sofa.", "A red sofa by the window.")


def line():
    """Return a strategy for captions: one line of text without blanks or quotes at its ends."""
    words = st.text(st.characters(exclude_categories=("Z", "C"), exclude_characters='"“”'), min_size=1, max_size=8)
    return st.lists(words, min_size=1, max_size=8).map(" ".join)


@given(first=line(), second=line(), fenced=st.booleans(), indent=st.sampled_from([None, 2]))
def test_captions_in_json_are_parsed_unchanged(first, second, fenced, indent):
    text = json.dumps({"with": first, "without": second}, indent=indent)
    assert read_answer(f"```json\n{text}\n```" if fenced else f"  {text}\n") == Draft(first, second)


@given(first=line(), second=line(), mark=st.sampled_from(".):"), intro=st.sampled_from(["", "Here they are:\n\n"]))
def test_captions_in_a_numbered_list_are_parsed_unchanged(first, second, mark, intro):
    assert read_answer(f"{intro}1{mark} {first}\n\n2{mark} {second}\n") == Draft(first, second)


@given(text=st.text(max_size=200))
def test_any_text_is_parsed_or_refused_with_a_reason(text):
    with contextlib.suppress(UnusableAnswer):
        draft = read_answer(text)
        assert isinstance(draft.caption, str)
        assert "\n" not in draft.caption + draft.counterfactual


@given(cut=st.integers(0, 58))
def test_a_truncated_answer_is_never_used(cut):
    whole = json.dumps({"with": GOOD.caption, "without": GOOD.counterfactual})
    with pytest.raises(UnusableAnswer):
        read_answer(whole[:cut])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty-answer"),
        ("<think>a cat?</think>  ", "empty-answer"),
        ("```json\n\n```", "empty-answer"),
        ('{"with": "a cat", "without": ', "not-json"),
        ('{"with": "a cat", "without": "a sofa"} I hope this helps', "not-json"),
        ("{'with': 'a cat', 'without': 'a sofa'}", "not-json"),
        ('{"with": "a cat"}', "wrong-keys"),
        ('{"with": "a cat", "without": "a sofa", "more": ""}', "wrong-keys"),
        ('["a cat", "a sofa"]', "wrong-keys"),
        ('{"with": ["a cat"], "without": "a sofa"}', "not-text"),
        ('{"with": null, "without": "a sofa"}', "not-text"),
        ("[" * 100_000, "not-json"),
        ("A cat on a sofa.", "not-two-items"),
        ("1. A cat on a sofa.", "not-two-items"),
        ("1. A cat.\n2. A sofa.\n3. A dog.", "not-two-items"),
        ("1. A cat.\n2. A sofa.\nI hope this helps", "not-two-items"),
        ("2. A cat.\n1. A sofa.", "not-two-items"),
        ("1. A cat.\n1. A sofa.", "not-two-items"),
    ],
)
def test_text_that_is_not_an_answer_is_refused(text, reason):
    with pytest.raises(UnusableAnswer) as caught:
        read_answer(text)
    assert caught.value.reason == reason


def test_reasoning_quotes_and_line_breaks_are_removed():
    text = '<think>\n1. hm\n</think>\n\n{"with": "\\"A cat\\non a  sofa.\\"", "without": "“A sofa.”"}'
    assert read_answer(text) == Draft("A cat on a sofa.", "A sofa.")


def test_captions_may_name_a_label_by_name_synonym_or_plural():
    check_draft(GOOD, [CAT], 75)
    check_draft(Draft("Two felines on a sofa", "A red sofa outdoors"), [CAT], 75)
    check_draft(Draft("A man by a hot-dog stand", "A man by a stand"), [HOT_DOG], 75)
    check_draft(Draft("CATS chase dogs", "A catalogue of dogma here"), [CAT, DOG], 75)


@pytest.mark.parametrize(
    ("caption", "counterfactual", "reason"),
    [
        ("A grey dog on a sofa", GOOD.counterfactual, "label-missing"),
        ("A catalogue on a sofa", GOOD.counterfactual, "label-missing"),
        (GOOD.caption, "A sofa without a cat", "label-in-counterfactual"),
        (GOOD.caption, "A sofa without cats", "label-in-counterfactual"),
        (GOOD.caption, "A sofa, no Feline there", "label-in-counterfactual"),
        ("A cat", GOOD.counterfactual, "too-short"),
        ('"Cat" - 1', GOOD.counterfactual, "too-short"),
        (GOOD.caption, "", "too-short"),
        (GOOD.caption + " very" * 80, GOOD.counterfactual, "too-long"),
        ("the grey cat, the grey cat, the grey cat,", GOOD.counterfactual, "repeats-itself"),
        ("a grey cat \ud800 there", GOOD.counterfactual, "not-storable"),
    ],
)
def test_invalid_captions_are_refused(caption, counterfactual, reason):
    with pytest.raises(UnusableAnswer) as caught:
        check_draft(Draft(caption, counterfactual), [CAT], 75)
    assert caught.value.reason == reason


def test_a_label_in_another_spelling_is_found_in_the_counterfactual():
    with pytest.raises(UnusableAnswer, match="label-in-counterfactual"):
        check_draft(Draft("A man eats a hot dog", "A man by a hot-dog stand"), [HOT_DOG], 75)


@pytest.mark.parametrize("answer_format", ["json", "list"])
@pytest.mark.parametrize("suggest_setting", [True, False])
def test_the_prompt_names_the_labels_and_asks_for_both_scenes(answer_format, suggest_setting):
    bow = load_vocabulary("lvis1203").by_name("bow (weapon)")
    text = write_prompt([bow, CAT], 7, answer_format=answer_format, suggest_setting=suggest_setting)
    assert "a bow (weapon) and a cat" in text
    assert 'use the words "bow" and "cat"' in text
    assert "Photograph 2: only the" in text
    assert ('"without"' in text) == (answer_format == "json")
    assert "{" not in text.replace('{"with"', "")
    again = write_prompt([bow, CAT], 7, answer_format=answer_format, suggest_setting=suggest_setting)
    other = write_prompt([bow, CAT], 8, answer_format=answer_format, suggest_setting=suggest_setting)
    assert text == again
    assert (text == other) == (not suggest_setting)


def test_an_echo_of_the_instructions_is_detected_but_the_setting_is_not_an_echo():
    assert echoes_prompt("A cat, two photographs of the same view in the same light.")
    text = write_prompt([CAT], 7, answer_format="json", suggest_setting=True)
    scene = text.split("Photograph 2: only the ")[1].splitlines()[0]
    assert not echoes_prompt(f"A cat in a {scene}")
    assert not echoes_prompt("same view")
