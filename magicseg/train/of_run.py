"""Training on a run's own data, in this process alone or in one of many."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from magicseg.errors import BackendError
from magicseg.run.directory import Run
from magicseg.run.files import storage_errors
from magicseg.run.versions import library_versions
from magicseg.store.kept import KeptSamples
from magicseg.train.distributed import World, joined

if TYPE_CHECKING:
    from magicseg.train.loop import TrainResult


def train_run(
    run: Run, *, world: World, progress: Callable[[int, str], None], stop: Callable[[], bool]
) -> "TrainResult":
    """Train on the kept samples, or go on from the newest checkpoint; a finished training is left alone.

    Args: progress: told the step and a text about it. stop: asked in every step.
    Raises: IncompleteError if the data are not whole; BackendError without torch; what `train` itself raises.
    """
    run.refuse_unfetched("train")
    samples = KeptSamples.of(run)
    try:
        from magicseg.train.loop import TrainProgress, train
    except ImportError as error:
        raise BackendError(
            f"training needs torch: {error}", hint="install the model libraries: pip install 'magicseg[models]'"
        ) from error

    def show(state: TrainProgress) -> None:
        progress(state.step, f"loss {state.losses['loss']:.4f}")

    with joined(world), storage_errors(run.path, f"free some space, then: magicseg train {run.path}"):
        return train(
            samples,
            run.vocabulary,
            run.config.train,
            run.path,
            seed=run.config.seed,
            data_fingerprint=run.fingerprints["mask"].digest,
            device=world.device,
            world=world,
            progress=show,
            stop=stop,
            provenance={
                "versions": library_versions(),
                "samples": len(samples.indices),
                "near_duplicates": samples.near_duplicates,
                "world_size": world.size,
            },
        )
