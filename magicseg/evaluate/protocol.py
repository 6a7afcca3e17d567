"""Benchmark protocols: what a benchmark's files mean and where they lie, as small data files."""

from difflib import get_close_matches
from functools import cached_property
from importlib.resources import files

import yaml
from pydantic import Field

from magicseg.errors import ConfigError
from magicseg.labels import BACKGROUND, Vocabulary, load_vocabulary
from magicseg.settings import Settings


class Protocol(Settings):
    """How one benchmark is scored.

    Label files, and predictions likewise, hold the ids of the vocabulary: 0 is background, 1 the first label. The
    background counts as a class where the vocabulary has one (``voc21``), else its pixels are ignored (``voc20``).
    """

    name: str
    vocabulary: str = Field(description="a shipped vocabulary")
    ignore_value: int = Field(ge=0, description="value in label files of the pixels that do not count")
    split_list: str = Field(description="file in the data folder that lists the images' names, one a line")
    label_folder: str = Field(description="folder of the label PNGs in the data folder")
    label_suffix: str = Field(description="what follows an image's name in the name of its label file")
    spelling: dict[str, str] = Field(
        default_factory=dict,
        description="the benchmark's spelling of labels that the vocabulary spells otherwise",
    )
    source: str = Field(description="who published the protocol, and where")

    @cached_property
    def labels(self) -> Vocabulary:
        """The vocabulary itself."""
        return load_vocabulary(self.vocabulary)

    @property
    def counts_background(self) -> bool:
        """Whether background is a class."""
        return self.labels.background is not None

    @property
    def first_value(self) -> int:
        """The value in files of the first class."""
        return BACKGROUND if self.counts_background else BACKGROUND + 1

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes' names in the benchmark's own spelling; the first has the value `first_value`."""
        background = self.labels.background or ()
        return (*background[:1], *(self.spelling.get(name, name) for name in self.labels.names))


def protocol_names() -> tuple[str, ...]:
    """The names of the benchmarks that can be scored."""
    folder = files("magicseg.evaluate") / "benchmarks"
    return tuple(sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml")))


def load_protocol(name: str) -> Protocol:
    """The protocol of benchmark ``name``.

    Raises: ConfigError for an unknown one, naming those there are.
    """
    known = protocol_names()
    if name not in known:
        nearest = get_close_matches(name.lower(), known, n=1)
        raise ConfigError(
            f"there is no benchmark {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""),
            hint=f"benchmarks: {', '.join(known)}",
        )
    text = (files("magicseg.evaluate") / "benchmarks" / f"{name}.yaml").read_text(encoding="utf-8")
    return Protocol.model_validate(yaml.safe_load(text))
