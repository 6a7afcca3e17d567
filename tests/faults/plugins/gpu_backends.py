"""Back ends that say that they compute on a GPU, and record which GPUs they see. They compute on the CPU."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from magicseg.core.settings import Settings
from magicseg.miniature.painter import Painter
from magicseg.stages.mask.pair_difference import PairDifferenceMasker

VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")


class RecordingOptions(Settings):
    """``log``: a folder. ``kill_on``: GPUs on which a worker dies once. ``full``: GPUs without memory."""

    NEUTRAL: ClassVar[frozenset[str]] = frozenset({"log", "seconds", "kill_on", "full", "full_at_start"})

    device: str = "cuda"
    log: str
    seconds: float = 0.0
    kill_on: list[str] = Field(default_factory=list)
    full: list[str] = Field(default_factory=list)
    full_at_start: bool = False


class RecordingPainter:
    """The painter. Every batch adds a line to LOG/worker-HOST-PID: time, variables, and torch's state before it."""

    Options = RecordingOptions

    @classmethod
    def identity(cls, options):
        return {}

    def __init__(self, settings, options):
        self._options, self._honest = options, Painter(settings, Painter.Options())
        self._torch_was_there = "torch" in sys.modules
        if options.full_at_start:
            self._refuse()

    def generate(self, requests):
        options = self._options
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        began = time.time()
        mark = Path(options.log, f"killed-{gpu}")
        if gpu in options.kill_on and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        self._refuse()
        time.sleep(options.seconds)
        line = {name: os.environ[name] for name in VARIABLES if name in os.environ}
        host, pid = socket.gethostname(), os.getpid()
        line |= {"from": began, "to": time.time(), "host": host, "pid": pid, "torch": self._torch_was_there}
        with Path(options.log, f"worker-{host}-{pid}").open("a") as file:
            file.write(json.dumps(line) + "\n")
        return self._honest.generate(requests)

    def _refuse(self):
        if os.environ.get("CUDA_VISIBLE_DEVICES", "") in self._options.full:
            import torch

            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has ...")


class DeclaringMasker(PairDifferenceMasker):
    """The pair-difference masker. It has no option ``device``, and says by a method that it computes on a GPU."""

    @classmethod
    def device(cls, options):
        return "auto"
