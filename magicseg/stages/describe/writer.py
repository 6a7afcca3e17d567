"""What all captioners with a language model share: ask, read, check, ask again, and fall back to the template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pydantic import Field

from magicseg.backends import DescribeRequest, Description, Rejection
from magicseg.core.randomness import sample_seed
from magicseg.core.settings import Settings
from magicseg.stages.describe import answer, instructions, template
from magicseg.stages.describe.answer import Draft, Unusable, check_draft, read_answer
from magicseg.stages.describe.instructions import AnswerFormat, echoes_prompt, write_prompt
from magicseg.stages.describe.length import CLIP_TOKENS
from magicseg.stages.describe.template import describe_by_template

RECIPES = {"prompt": instructions.RECIPE, "answer": answer.RECIPE, "template": template.RECIPE}


class WritingOptions(Settings):
    """What captioners with a language model are told."""

    attempts: int = Field(3, ge=1, le=20, description="answers asked for before the template steps in")
    answer_format: AnswerFormat = Field("json", description="json, or list (two numbered lines) for small models")
    suggest_setting: bool = Field(True, description="suggest a drawn place and light in each prompt")
    max_tokens: int = Field(CLIP_TOKENS, ge=8, le=4096, description="of the text encoder; estimated from above")
    max_new_tokens: int = Field(192, ge=16, le=8192, description="length of an answer")
    temperature: float = Field(0.9, ge=0, le=5, description="0: the likeliest word always")
    top_p: float = Field(0.95, gt=0, le=1)


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt, and the seed of its answer."""

    index: int
    prompt: str
    seed: int


@dataclass(frozen=True)
class Failed:
    """No answer came. ``reason`` is a short slug that is counted."""

    reason: str


Complete = Callable[[Sequence[Ask]], Sequence[str | Failed]]


@dataclass
class _Open:
    """A sample without a caption as yet."""

    request: DescribeRequest
    why: list[str] = field(default_factory=list)


def write_descriptions(
    requests: Sequence[DescribeRequest], options: WritingOptions, complete: Complete
) -> list[Description | Rejection]:
    """One description per request, in order: the model's where one of its answers stands all checks.

    All open samples are asked for in one call of ``complete``, then those without a usable answer again, with new
    seeds, and so on. Each description's quality has ``source`` ("model" or "template"), ``attempts`` and
    ``rejected``, the reasons of the answers that were not used, joined by commas.
    """
    done: dict[int, Description | Rejection] = {}
    waiting = {place: _Open(request) for place, request in enumerate(requests)}
    for attempt in range(options.attempts):
        # A sample without labels is the template's to refuse.
        asked = {place: sample for place, sample in waiting.items() if sample.request.labels}
        if not asked:
            break
        texts = complete([_ask(sample.request, attempt, options) for sample in asked.values()])
        for (place, sample), text in zip(asked.items(), texts, strict=True):
            try:
                draft = _usable(text, sample.request, options.max_tokens)
            except Unusable as error:
                sample.why.append(error.reason)
            else:
                done[place] = _description(draft.caption, draft.counterfactual, "model", attempt + 1, sample.why)
                del waiting[place]
    for place, sample in waiting.items():
        done[place] = _fallback(sample, options)
    return [done[place] for place in range(len(requests))]


def _ask(request: DescribeRequest, attempt: int, options: WritingOptions) -> Ask:
    seed = sample_seed(request.seed, "describe.attempt", attempt)
    text = write_prompt(
        request.labels, seed, answer_format=options.answer_format, suggest_setting=options.suggest_setting
    )
    return Ask(index=request.index, prompt=text, seed=seed)


def _usable(text: str | Failed, request: DescribeRequest, max_tokens: int) -> Draft:
    if isinstance(text, Failed):
        raise Unusable(text.reason)
    draft = read_answer(text)
    check_draft(draft, request.labels, max_tokens)
    if echoes_prompt(draft.caption) or echoes_prompt(draft.counterfactual):
        raise Unusable("echoes-the-prompt")
    return draft


def _fallback(sample: _Open, options: WritingOptions) -> Description | Rejection:
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
