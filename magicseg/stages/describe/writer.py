"""Shared by all captioners with a language model: prompt, parse, check, retry, and fall back to the template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.randomness import sample_seed
from magicseg.core.settings import Settings
from magicseg.stages.describe import answer, instructions, template
from magicseg.stages.describe.answer import Draft, UnusableAnswer, check_draft, read_answer
from magicseg.stages.describe.instructions import AnswerFormat, echoes_prompt, write_prompt
from magicseg.stages.describe.template import describe_by_template
from magicseg.stages.describe.token_count import CLIP_TOKENS

RECIPES = {"prompt": instructions.RECIPE, "answer": answer.RECIPE, "template": template.RECIPE}


class WritingOptions(Settings):
    """The options of all captioners with a language model."""

    attempts: int = Field(3, ge=1, le=20, description="requested answers before the template is used")
    answer_format: AnswerFormat = Field("json", description="json, or list (two numbered lines) for small models")
    suggest_setting: bool = Field(True, description="suggest a random place and light in each prompt")
    max_tokens: int = Field(CLIP_TOKENS, ge=8, le=4096, description="limit of the text encoder (upper estimate)")
    max_new_tokens: int = Field(192, ge=16, le=8192, description="limit of an answer")
    temperature: float = Field(0.9, ge=0, le=5, description="0: always the most likely token")
    top_p: float = Field(0.95, gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt, and the seed of its answer."""

    index: int
    text: str
    seed: int


@dataclass(frozen=True)
class NoAnswer:
    """The absence of an answer. ``reason`` is a short identifier for statistics."""

    reason: str


AnswerPrompts = Callable[[Sequence[Prompt]], Sequence[str | NoAnswer]]


@dataclass
class _PendingSample:
    """A sample that has no caption yet. ``why``: the reasons of its failed attempts."""

    request: DescribeRequest
    why: list[str] = field(default_factory=list)


def write_descriptions(
    requests: Sequence[DescribeRequest], options: WritingOptions, complete: AnswerPrompts
) -> list[Description | Rejection]:
    """Return one description per request: the model's if an answer passes all checks, else the template's.

    One call of ``complete`` prompts for all samples. The next call prompts again, with new seeds, for the samples
    without a usable answer, and so on. Each description's quality has ``source`` ("model" or "template"),
    ``attempts`` and ``rejected``, the comma-separated reasons of the unusable answers.
    """
    done: dict[int, Description | Rejection] = {}
    waiting = {index: _PendingSample(request) for index, request in enumerate(requests)}
    for attempt in range(options.attempts):
        # The template rejects samples without labels.
        asked = {index: sample for index, sample in waiting.items() if sample.request.labels}
        if not asked:
            break
        texts = complete([_prompt(sample.request, attempt, options) for sample in asked.values()])
        for (index, sample), text in zip(asked.items(), texts, strict=True):
            try:
                draft = _usable(text, sample.request, options.max_tokens)
            except UnusableAnswer as error:
                sample.why.append(error.reason)
            else:
                done[index] = _description(draft.caption, draft.counterfactual, "model", attempt + 1, sample.why)
                del waiting[index]
    for index, sample in waiting.items():
        done[index] = _fallback(sample, options)
    return [done[index] for index in range(len(requests))]


def _prompt(request: DescribeRequest, attempt: int, options: WritingOptions) -> Prompt:
    seed = sample_seed(request.seed, "describe.attempt", attempt)
    text = write_prompt(
        request.labels, seed, answer_format=options.answer_format, suggest_setting=options.suggest_setting
    )
    return Prompt(index=request.index, text=text, seed=seed)


def _usable(text: str | NoAnswer, request: DescribeRequest, max_tokens: int) -> Draft:
    if isinstance(text, NoAnswer):
        raise UnusableAnswer(text.reason)
    draft = read_answer(text)
    check_draft(draft, request.labels, max_tokens)
    if echoes_prompt(draft.caption) or echoes_prompt(draft.counterfactual):
        raise UnusableAnswer("echoes-the-prompt")
    return draft


def _fallback(sample: _PendingSample, options: WritingOptions) -> Description | Rejection:
    made = describe_by_template(sample.request, options.max_tokens)
    if isinstance(made, Rejection):
        why = f"; before that: {','.join(sample.why)}" if sample.why else ""
        return Rejection(reason=made.reason, detail=made.detail + why)
    return _description(made.caption, made.counterfactual, "template", len(sample.why), sample.why)


def _description(caption: str, counterfactual: str, source: str, attempts: int, why: Sequence[str]) -> Description:
    return Description(
        caption=caption,
        counterfactual=counterfactual,
        quality={
            "words": len(caption.split()),
            "source": source,
            "attempts": attempts,
            "rejected": ",".join(why),
        },
    )
