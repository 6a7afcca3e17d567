"""Settings of evaluation."""

from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field

from magicseg.core.paths import absolute
from magicseg.core.settings import Settings

Baseline = Literal["vanilla", "maskclip", "sclip", "clearclip", "memory-bank"]
BASELINES: tuple[Baseline, ...] = get_args(Baseline)

MINIATURE = "miniature"
"""The benchmark of painted scenes; it needs no data."""


OWN_MASKS = "own-masks"
"""The benchmark of a run's pairs that were held out of training, against the run's own masks, not a ground truth."""

WITHOUT_DATA = frozenset({MINIATURE, OWN_MASKS})
"""The benchmarks that need no data set."""


def is_protocol_file(name: str) -> bool:
    """Whether a benchmark is named by the path of a protocol file, and not by a shipped protocol's name."""
    return name.lower().endswith((".yaml", ".yml"))


class EvaluateSettings(Settings):
    """What a model is scored on, beside what, and how."""

    benchmarks: tuple[str, ...] = Field(
        (MINIATURE,),
        min_length=1,
        description=f"names of shipped protocols, {OWN_MASKS} (needs train.held_out), or paths of protocol files",
    )
    data: Annotated[str, AfterValidator(absolute)] | None = Field(
        None, description="folder of the benchmarks' data sets, or of the one there is"
    )
    baselines: tuple[Baseline, ...] = Field((), description="what is scored beside the model, by the same protocols")
    limit: int | None = Field(None, ge=1, description="images of each benchmark, evenly spread; null: all")
    background: Literal["threshold", "prompts"] | None = Field(
        None, description="another rule for background than the protocols' own"
    )
    sweep_images: int = Field(
        200, ge=0, description="images of a benchmark's other split to sweep the threshold on; 0: the protocol's"
    )
    bank_samples: int = Field(1024, ge=1, description="generated images that a memory bank is made of, at most")
    bank_prototypes: int = Field(4, ge=1, description="prototypes of each class in a memory bank, at most")
    scenes: int = Field(256, ge=1, description="held-out painted scenes of the miniature benchmark")
    max_objects: int = Field(2, ge=1, le=2, description="objects per held-out scene")
    batch_size: int = Field(32, ge=1, description="held-out scenes at a time")
    threshold: float = Field(
        0.5, ge=0, le=1, description="of the miniature benchmark: pixels whose best class scores less are background"
    )

    @property
    def has_data(self) -> bool:
        """Whether all benchmarks have the data that they need, as far as the settings say."""
        return self.data is not None or set(self.benchmarks) <= WITHOUT_DATA
