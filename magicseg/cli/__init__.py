"""The command line. Nothing here computes: every command calls a plain function.

Heavy libraries are imported inside the commands that need them, so that ``magicseg --help`` is quick and a login
node needs no torch.
"""

import sys

import typer

from magicseg.cli import (
    cluster,
    container,
    data,
    doctor,
    estimate,
    evaluate,
    learn,
    predict,
    runs,
    score,
    stages,
    status,
)
from magicseg.cli.output import report_error
from magicseg.collector import relax
from magicseg.core.safe_path import forget_present_folder
from magicseg.errors import MagicsegError

app = typer.Typer(
    name="magicseg",
    help="From class labels to a pixel-labelled synthetic data set, to a trained segmentation model, to its score.",
    epilog="Exit codes: 0 done; 1 some work failed, is missing or is damaged; 2 a mistake in what was asked.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(rich_help_panel="A run")(runs.demo)
app.command(rich_help_panel="A run")(runs.init)
app.command(rich_help_panel="A run")(runs.fetch)
app.command("run", rich_help_panel="A run")(runs.run_all)
app.command(rich_help_panel="A run")(status.status)
app.command(rich_help_panel="A run")(doctor.doctor)
app.command(rich_help_panel="A run")(runs.reset)
app.command(rich_help_panel="A run")(runs.schema)
app.command(rich_help_panel="Stages")(stages.describe)
app.command(rich_help_panel="Stages")(stages.generate)
app.command(rich_help_panel="Stages")(stages.mask)
app.command(rich_help_panel="Stages")(learn.train)
app.command(rich_help_panel="Stages")(evaluate.evaluate)
app.command(rich_help_panel="On a cluster")(estimate.estimate)
app.command(rich_help_panel="On a cluster")(cluster.submit)
app.command(rich_help_panel="On a cluster")(cluster.profile)
app.command(rich_help_panel="On a cluster")(cluster.logs)
app.command(rich_help_panel="On a cluster")(cluster.cancel)
app.command(rich_help_panel="On a cluster")(cluster.efficiency)
app.add_typer(container.app, name="container", rich_help_panel="On a cluster")
app.command("follow-up", hidden=True)(cluster.follow_up)
app.command(rich_help_panel="Results")(learn.report)
app.command(rich_help_panel="Results")(evaluate.compare)
app.command(rich_help_panel="Results")(predict.predict)
app.command(rich_help_panel="Results")(score.score)
app.command(rich_help_panel="The data set")(data.verify)
app.command(rich_help_panel="The data set")(data.repair)
app.command(rich_help_panel="The data set")(data.digest)
app.command(rich_help_panel="The data set")(data.export)
app.command("import", rich_help_panel="The data set")(data.import_)


def main() -> None:
    """The ``magicseg`` command."""
    forget_present_folder()
    relax()
    try:
        app()
    except MagicsegError as error:
        report_error(error)
        sys.exit(error.exit_code)
