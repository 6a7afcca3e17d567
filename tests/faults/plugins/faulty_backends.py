"""Back ends with configurable faults, installed as plug-ins by entry points."""

import os
import signal
import time
from typing import ClassVar

import numpy as np
from pydantic import Field

from magicseg.backends import Description, ImagePair, Rejection
from magicseg.core.settings import Settings
from magicseg.miniature.painter import Painter
from magicseg.stages.describe.grammar import GrammarCaptioner
from magicseg.stages.mask.pair_difference import PairDifferenceMasker


class FaultyOptions(Settings):
    """The fault and its samples (all samples if empty). ``seconds``: sleep before each batch."""

    fault: str = "none"
    at: list[int] = Field(default_factory=list)
    seconds: float = 0.0


class _Faulty:
    Options = FaultyOptions

    @classmethod
    def identity(cls, options):
        return {}

    def __init__(self, settings, options):
        if options.fault == "start":
            raise RuntimeError("no such device")
        self.options = options
        self.honest = self.honest_class(settings, self.honest_class.Options())

    def _hit(self, requests):
        time.sleep(self.options.seconds)
        return [request for request in requests if request.index in self.options.at or not self.options.at]

    def _answers(self, requests, honest):
        options, answers = self.options, list(honest(requests))
        hit = {request.index for request in self._hit(requests)}
        if not hit:
            return answers
        match options.fault:
            case "raise":
                raise ValueError(f"cannot do {sorted(hit)}")
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "too-few":
                return answers[:-1]
        return [
            self.WRONG[options.fault](answer) if options.fault in self.WRONG and request.index in hit else answer
            for request, answer in zip(requests, answers, strict=True)
        ]


class FaultyCaptioner(_Faulty):
    """The grammar captioner with faults."""

    honest_class = GrammarCaptioner
    WRONG: ClassVar = {
        "empty": lambda answer: Description(caption=" ", counterfactual="x"),
        "none": lambda answer: answer,
        "nothing": lambda answer: None,
        "surrogate": lambda answer: Description(caption="\ud800", counterfactual="x"),
        "quality": lambda answer: Description(
            caption=answer.caption, counterfactual=answer.counterfactual, quality={"score": np.float32(1)}
        ),
        "reject": lambda answer: Rejection(reason="disliked", detail="as told"),
        "template": lambda answer: Description(
            caption=answer.caption,
            counterfactual=answer.counterfactual,
            quality={"source": "template", "rejected": "cut-off,no-json"},
        ),
    }

    def describe(self, requests):
        return self._answers(requests, self.honest.describe)


class FaultyGenerator(_Faulty):
    """The painter with faults."""

    honest_class = Painter
    WRONG: ClassVar = {
        "shape": lambda answer: ImagePair(image=answer.image[:-1], counterfactual=answer.counterfactual),
        "dtype": lambda answer: ImagePair(image=answer.image / 255, counterfactual=answer.counterfactual),
        "reject": lambda answer: Rejection(reason="disliked", detail="as told"),
    }

    def generate(self, requests):
        return self._answers(requests, self.honest.generate)


class FaultyMasker(_Faulty):
    """The pair-difference masker with faults."""

    honest_class = PairDifferenceMasker
    WRONG: ClassVar = {}

    def mask(self, requests):
        return self._answers(requests, self.honest.mask)
