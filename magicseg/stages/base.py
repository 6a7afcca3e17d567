"""What an array stage's code is: it turns samples into requests, and answers into arrays."""

import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from magicseg.backends import BATCH_METHODS, Backend
from magicseg.config.run import Config
from magicseg.config.stage_declarations import DECLARATIONS, StageDeclaration
from magicseg.core.settings import Settings
from magicseg.run.directory import Run


class Stage(ABC):
    """The code of one array stage; everything else about the stage is in its `StageDeclaration`."""

    declaration: ClassVar[StageDeclaration]

    def start(self, config: Config, backend: type[Backend], options: Settings) -> Any:
        """Make the back end, which loads its weights. Raises whatever the back end raises."""
        constructor: Any = backend
        return constructor(self.declaration.settings(config), options)

    def call(self, backend: Any, requests: Sequence[Any]) -> Sequence[Any]:
        """Return the back end's answers to one batch, in order."""
        answers: Sequence[Any] = getattr(backend, BATCH_METHODS[self.declaration.backends])(requests)
        return answers

    @abstractmethod
    def requests(self, run: Run, samples: Sequence[int]) -> list[Any]:
        """Return one request per sample. ``samples`` are ascending and not empty."""

    @abstractmethod
    def check(self, run: Run, answer: Any) -> None:
        """Raise ValueError if the answer breaks the back end's protocol."""

    def packed(self, run: Run, answer: Any) -> Any:
        """Return an answer as `arrays` takes it.

        A second thread calls this while the back end does the next batch.
        """
        return answer

    @abstractmethod
    def arrays(self, run: Run, samples: range, packed: Mapping[int, Any]) -> dict[str, Any]:
        """Return a shard's whole content of every declared array, by its path in the store.

        Args: packed: the kept samples' packed answers by sample number; all others are dropped.
        """


def stage_code(name: str) -> Stage:
    """Return the code of a stage."""
    kind: type[Stage] = pkgutil.resolve_name(DECLARATIONS[name].code)
    return kind()
