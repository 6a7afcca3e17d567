"""Checks of a training job, before torchrun starts, in the image: python3 -m magicseg.launch.limits RUN VERSION."""

import sys
from pathlib import Path

from magicseg.core.errors import MagicsegError
from magicseg.launch.task import refuse_misfit


def main(run: str, version: str) -> None:
    """End with a sentence and exit code 2 if this is not what the run was submitted for."""
    try:
        refuse_misfit(Path(run), version)
    except MagicsegError as error:
        print("\n".join(error.lines()))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
