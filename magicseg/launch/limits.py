"""Check version and image in a training job before torchrun starts: python3 -m magicseg.launch.limits RUN VERSION."""

import sys
from pathlib import Path

from magicseg.core.errors import MagicsegError
from magicseg.launch.task import refuse_misfit


def main(run: str, version: str) -> None:
    """Print a message and exit with code 2 if the version or the image differs from the submission's."""
    try:
        refuse_misfit(Path(run), version)
    except MagicsegError as error:
        print("\n".join(error.lines()))
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
