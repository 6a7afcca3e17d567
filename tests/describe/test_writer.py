"""Prompting a model: attempts with new seeds, then the template. Every rejected answer is counted."""

import json

import pytest

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.labels import Label
from magicseg.stages.describe.template import describe_by_template
from magicseg.stages.describe.writer import NoAnswer, WritingOptions, write_descriptions

CAT, DOG = Label(id=1, name="cat"), Label(id=2, name="dog")
GOOD = json.dumps({"with": "A grey cat on a red sofa.", "without": "A red sofa by a window."})
OPTIONS = WritingOptions(attempts=3)


class Script:
    """A fake model with given answers for each sample."""

    def __init__(self, answers):
        self.answers = {index: iter(said) for index, said in answers.items()}
        self.rounds = []

    def __call__(self, prompts):
        self.rounds.append([(prompt.index, prompt.seed, prompt.text) for prompt in prompts])
        return [next(self.answers[prompt.index]) for prompt in prompts]


def requests(count, label=CAT):
    return [DescribeRequest(index=index, labels=(label,), seed=index + 50) for index in range(count)]


def test_each_sample_is_prompted_until_an_answer_passes_all_checks():
    script = Script(
        {
            0: [GOOD],
            1: ["no idea", GOOD],
            2: [NoAnswer("timeout"), GOOD.replace("cat", "cow"), GOOD],
            3: [GOOD.replace("window", "cat"), "", NoAnswer("http-500")],
        }
    )
    answers = write_descriptions(requests(4), OPTIONS, script)
    assert [dict(answer.quality) for answer in answers[:3]] == [
        {"words": 7, "source": "model", "attempts": 1, "rejected": ""},
        {"words": 7, "source": "model", "attempts": 2, "rejected": "not-two-items"},
        {"words": 7, "source": "model", "attempts": 3, "rejected": "timeout,label-missing"},
    ]
    fallen = describe_by_template(requests(4)[3], OPTIONS.max_tokens)
    assert (answers[3].caption, answers[3].counterfactual) == (fallen.caption, fallen.counterfactual)
    assert answers[3].quality["source"] == "template"
    assert answers[3].quality["attempts"] == 3
    assert answers[3].quality["rejected"] == "label-in-counterfactual,empty-answer,http-500"
    assert [[index for index, *_ in asked] for asked in script.rounds] == [[0, 1, 2, 3], [1, 2, 3], [2, 3]]


def test_every_attempt_has_a_different_seed_and_setting():
    script = Script({index: ["", "", ""] for index in range(5)})
    write_descriptions(requests(5), OPTIONS, script)
    asked = [prompt for round_ in script.rounds for prompt in round_]
    assert len({seed for _, seed, _ in asked}) == 15
    assert len({prompt for *_, prompt in asked}) > 10


def test_a_samples_prompt_is_independent_of_other_samples():
    alone, together = Script({3: ["", "", ""]}), Script({index: ["", "", ""] for index in range(5)})
    write_descriptions(requests(5)[3:4], OPTIONS, alone)
    write_descriptions(requests(5), OPTIONS, together)
    assert [round_[0] for round_ in alone.rounds] == [round_[3] for round_ in together.rounds]


def test_an_answer_that_echoes_the_instructions_is_not_used():
    echo = json.dumps(
        {"with": "A cat. Say what colour, size, material or pose it has.", "without": "A red sofa here."}
    )
    (answer,) = write_descriptions(requests(1), WritingOptions(attempts=1), Script({0: [echo]}))
    assert answer.quality["rejected"] == "echoes-the-prompt"


def test_a_sample_without_labels_is_not_sent_to_the_model():
    asked = Script({})
    (answer,) = write_descriptions([DescribeRequest(index=0, labels=(), seed=1)], OPTIONS, asked)
    assert answer == Rejection(reason="no-labels")
    assert asked.rounds == []


def test_the_reasons_are_kept_if_the_template_also_fails():
    (answer,) = write_descriptions(requests(1, Label(id=1, name="empty")), OPTIONS, Script({0: ["", "{}", GOOD]}))
    assert isinstance(answer, Rejection)
    assert answer.reason == "counterfactual-names-label"
    assert answer.detail.endswith("; before that: empty-answer,wrong-keys,label-missing")


def test_the_model_must_return_one_answer_per_prompt():
    with pytest.raises(ValueError, match="zip"):
        write_descriptions(requests(2), OPTIONS, lambda prompts: [GOOD])
    assert isinstance(write_descriptions(requests(1), OPTIONS, lambda prompts: [GOOD])[0], Description)
