"""Training on a run's data, in this process alone or in one of many."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from magicseg.core.distributed import EVALUATION, TIMEOUT, World, joined
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
    """Train on the run's samples or its sources, or go on from the newest checkpoint.

    A finished training is left alone.

    Args: progress: told the step and a text about it. stop: asked in every step.
    tell: called with what was assumed of the sources.
    Raises: ConfigError if it is to be evaluated meanwhile and there is nothing to do it on; BackendError without
    torch; what `magicseg.data.mixture.open_sources` and `train` raise.
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
    if run.config.train.evaluate_every and world.leads:
        from magicseg.train.validation import watch

        watcher = watch(run)
        if watcher is None:
            raise ConfigError(
                "train.evaluate_every is set, but there is nothing to look at that is neither trained nor tested on",
                hint="set evaluate.data to a benchmark with its other split, or train.evaluate_every=0",
            )
    nothing: dict[str, float] = {}
    patience = EVALUATION if run.config.train.evaluate_every else TIMEOUT
    sources = open_sources(
        run, tell=tell
    )  # before the processes join: staging may take longer than they wait for each other
    with (
        joined(world, patience=patience),
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
