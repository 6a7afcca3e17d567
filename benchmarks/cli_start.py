"""``magicseg --help`` does not import the heavy libraries, and takes little longer than importing typer.

References: an empty Python program, and a program that imports typer with its rich help. Ratios are against each.

    python benchmarks/cli_start.py
    python benchmarks/cli_start.py --repeats 3
"""

import argparse
import subprocess
import sys
from functools import partial

from measure import medians, print_table

_PROGRAM = "import sys; from magicseg.cli import main; sys.argv[0] = 'magicseg'; main()"


def _run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=11)
    arguments = parser.parse_args()
    programs = {
        "python -c pass": ("-c", "pass"),
        "python -c 'import typer'": ("-c", "import typer"),
        "python -c 'import typer, rich help'": ("-c", "import typer, typer.rich_utils, rich.panel, rich.table"),
        "magicseg --help": ("-c", _PROGRAM, "--help"),
        "magicseg generate --help": ("-c", _PROGRAM, "generate", "--help"),
    }
    found = medians({name: partial(_run, *command) for name, command in programs.items()}, arguments.repeats)
    bare, typer = found["python -c pass"], found["python -c 'import typer'"]
    print_table(
        f"start-up (median of {arguments.repeats})",
        ["", "ms", "ratio to pass", "ratio to typer"],
        [[name, 1000 * seconds, seconds / bare, seconds / typer] for name, seconds in found.items()],
    )
    listed = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", _PROGRAM, "--help"],
        check=True,
        capture_output=True,
        text=True,
    ).stderr
    imported = {line.rsplit("|", 1)[-1].strip() for line in listed.splitlines()}
    for name in ("torch", "zarr", "numpy", "pydantic", "h5py", "PIL"):
        print(f"{name}: {'imported' if name in imported else 'not imported'} for the help")


if __name__ == "__main__":
    main()
