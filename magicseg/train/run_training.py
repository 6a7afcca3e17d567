"""Train on a run's data, in one process or as one rank of many."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from magicseg.core.distributed import EVALUATION, TIMEOUT, World, process_group
from magicseg.core.errors import BackendError, ConfigError
from magicseg.core.files import storage_errors
from magicseg.core.text import command
from magicseg.run.directory import Run
from magicseg.run.versions import library_versions

if TYPE_CHECKING:
    from magicseg.train.loop import TrainResult


def train_run(
    run: Run,
    *,
    world: World,
    progress: Callable[[int, str], None],
    stop: Callable[[], bool],
    tell: Callable[[str], None] = lambda text: None,
) -> "TrainResult":
    """Train on the run's samples or its sources; resume from the newest checkpoint if there is one.

    Does nothing if training has finished.

    Args:
        progress: called with the step and a text about it.
        stop: called in every step; True ends training.
        tell: called with each assumption about the sources.

    Raises: ConfigError if ``train.evaluate_every`` is set and there is no data for the evaluation; BackendError if
    torch is missing; also what `magicseg.data.mixture.open_sources` and `magicseg.train.loop.train` raise.
    """
    run.refuse_unfetched("train")
    try:
        from magicseg.data.mixture import open_sources
        from magicseg.train.loop import TrainProgress, train
    except ImportError as error:
        raise BackendError(
            f"training needs torch: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error

    def show(state: TrainProgress) -> None:
        progress(state.step, f"loss {state.losses['loss']:.4f}")

    watcher = None
    if run.config.train.evaluate_every and world.is_rank_0:
        from magicseg.train.validation import watch

        watcher = watch(run)
        if watcher is None:
            raise ConfigError(
                "train.evaluate_every is set, but there is no validation data that is neither trained nor tested on",
                hint="set evaluate.data to a benchmark with its other split, or train.evaluate_every=0",
            )
    nothing: dict[str, float] = {}
    patience = EVALUATION if run.config.train.evaluate_every else TIMEOUT
    # Before the ranks join: staging may take longer than the process group's timeout.
    sources = open_sources(run, tell=tell)
    with (
        process_group(world, patience=patience),
        storage_errors(run.path, command("magicseg", "train", run.path)),
    ):
        return train(
            sources.samples,
            sources.vocabulary,
            run.config.train,
            run.path,
            seed=run.config.seed,
            data_fingerprint=sources.fingerprint,
            device=world.device,
            world=world,
            progress=show,
            stop=stop,
            evaluate=watcher or (lambda _model, _step: nothing),
            provenance={
                "versions": library_versions(),
                **sources.provenance,
                "world_size": world.size,
            },
        )
