"""The array stages, by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from magicseg.run.directory import Run
from magicseg.stages.describe.stage import DescribeStage
from magicseg.stages.generate.stage import GenerateStage
from magicseg.stages.mask.stage import MaskStage


class Stage(Protocol):
    """How a stage turns samples into requests, and answers into arrays."""

    name: str

    def requests(self, run: Run, samples: Sequence[int]) -> list[Any]: ...

    def call(self, backend: Any, requests: Sequence[Any]) -> Sequence[Any]: ...

    def check(self, run: Run, answer: Any) -> None: ...

    def packed(self, run: Run, answer: Any) -> Any:
        """An answer as `arrays` takes it. It is made in a second thread, while the back end does the next batch."""

    def arrays(self, run: Run, samples: range, packed: Mapping[int, Any]) -> dict[str, Any]: ...


STAGE_CODE: Mapping[str, Stage] = {stage.name: stage for stage in (DescribeStage(), GenerateStage(), MaskStage())}
