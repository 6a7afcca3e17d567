"""Load batches in reader processes (DataLoader workers), and deliver them in order.

Every wait is bounded. Training ends with an error that names the cause if a reader dies, cannot send a batch, or
delivers nothing for `loader_timeout` seconds. A stop signal is handled while training waits for a batch.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.queues import Queue
from multiprocessing.util import Finalize
from typing import Any, NoReturn, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from magicseg.config.training_data import DataSettings
from magicseg.core.distributed import ALONE, World
from magicseg.core.errors import IncompleteError, MagicsegError
from magicseg.core.signals import fork_server, open_files
from magicseg.core.text import size_text
from magicseg.core.waiting import bounded
from magicseg.data.dataset import Batch, Mixture, SampleDataset, Samples, Steps, input_size, order_of
from magicseg.data.packing import Packed, pack, unpack
from magicseg.data.sampler import Pick
from magicseg.data.shared_memory import FOLDER, PREFETCHED, enlarge_hint, free_bytes, needed_bytes

_CANNOT_SEND = 74  # EX_IOERR of sysexits.h
_STOP_GRACE_SECONDS = 15.0  # time for one more batch after a stop request
_log = logging.getLogger(__name__)
# torch's shutdown of a loader joins threads that wait for the lost reader, so it must not run. A reference here keeps
# the loader alive.
_abandoned: list[object] = []


class ReadersLost(IncompleteError):
    """No more batches will arrive, because a reader process died or hangs."""


def training_batches(
    samples: Samples | Mixture,
    settings: DataSettings,
    *,
    batch_size: int,
    start: int,
    stop: int,
    seed: int,
    world: World = ALONE,
    pin_memory: bool = False,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Batch]:
    """Yield this rank's part of the batches of steps ``start`` to ``stop`` - 1.

    Args: batch_size: global batch size, over all ranks. should_stop: polled while training waits for a batch.
    Raises: ConfigError, see `input_size`; DataError or DamageError that names a file that cannot be read;
    ReadersLost.
    """
    steps = Steps(
        order_of(samples, settings, seed=seed),
        batch_size=batch_size,
        start=start,
        stop=stop,
        rank=world.rank,
        world=world.size,
    )
    dataset = SampleDataset(samples, settings, seed=seed)
    if start < stop:
        _warn_of_little_room(-(-batch_size // world.size), input_size(samples, settings), settings.loader_workers)
    return load_batches(
        dataset,
        steps,
        workers=settings.loader_workers,
        pin_memory=pin_memory,
        patience=settings.loader_timeout,
        should_stop=should_stop,
    )


def load_batches(
    dataset: SampleDataset,
    steps: Steps,
    *,
    workers: int,
    pin_memory: bool = False,
    patience: float = 600.0,
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[Batch]:
    """Yield the batches of ``steps``, in order, loaded by ``workers`` processes (0: by this process).

    A fork server starts the workers, because a store's threads do not survive a plain fork. Workers ignore stop
    signals to the process group and end with the training process, which may need one more batch.

    Args: patience: seconds to wait for a batch.
    Raises: DataError or DamageError that names the file, when its batch is requested; ReadersLost.
    """
    loader = DataLoader(
        _Sent(dataset) if workers else dataset,
        batch_sampler=steps,
        collate_fn=cast("Any", _as_is),  # __getitems__ already returns a batch
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        multiprocessing_context="forkserver" if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_begin_reading,
        generator=torch.Generator(),  # otherwise the loader would advance the global generator
    )
    if not workers:
        return iter(loader)
    return _Readers(loader, patience, should_stop, pin_memory=pin_memory).batches()


class _Readers:
    """Start the workers of a loader, and wait for their batches."""

    def __init__(
        self,
        loader: "DataLoader[Any]",
        patience: float,
        should_stop: Callable[[], bool] | None,
        *,
        pin_memory: bool,
    ) -> None:
        self._patience, self._should_stop = patience, should_stop
        self._stopping_since: float | None = None
        self._processes: Sequence[multiprocessing.Process] = ()
        # torch's current device is per thread, and pinned memory is allocated for it.
        device = torch.accelerator.current_device_index() if pin_memory else None

        def begin() -> Any:
            if device is not None:
                torch.accelerator.set_device_index(device)
            return iter(loader)

        try:
            fork_server()
            self._batches = bounded(begin, self._look)
        except (OSError, EOFError) as error:
            raise _cannot_start(error) from error
        self._processes = self._batches._workers
        # If an exception ends this process, its traceback still references the batches. At exit, multiprocessing
        # would send SIGTERM to the readers, which ignore it, and join them. Finalizers with a priority run before
        # that.
        Finalize(self._batches, _kill, args=(self._processes,), exitpriority=1)

    def batches(self) -> Iterator[Batch]:
        """Yield all batches. Raises: ReadersLost; DataError, DamageError or OSError from a reader."""
        while True:
            self._stopping_since = None
            try:
                batch = bounded(lambda: next(self._batches, None), self._look)
            except ReadersLost:
                _abandoned.append(self._batches)
                raise
            except (RuntimeError, OSError, EOFError) as error:
                if str(error).startswith("Caught "):  # a bug in a reader: keep the traceback
                    raise
                _abandoned.append(self._batches)
                self._refuse_dead()
                raise ReadersLost(
                    f"a batch of the reader processes cannot be received: {_first_line(error)}", hint=_hint(error)
                ) from error
            if batch is None:
                return
            if isinstance(batch, MagicsegError | OSError):
                raise batch
            yield Batch(*unpack(batch))

    def _look(self, waited: float) -> None:
        self._refuse_dead()
        if self._should_stop is not None and self._should_stop():
            self._stopping_since = waited if self._stopping_since is None else self._stopping_since
            if waited - self._stopping_since > _STOP_GRACE_SECONDS:
                raise ReadersLost("training was interrupted while it waited for a batch", hint=_GO_ON)
        if waited > self._patience:
            raise ReadersLost(
                f"the reader processes delivered no batch within {self._patience:.0f} s",
                hint="does the storage answer? ls RUN; if it is only slow, raise train.loader_timeout",
            )

    def _refuse_dead(self) -> None:
        for process in self._processes:
            code = process.exitcode
            if code:
                raise ReadersLost(f"reader process {process.pid} {_ending(code)}", hint=_after(code))


_GO_ON = "the same command resumes from the newest checkpoint"


def _ending(code: int) -> str:
    if code == _CANNOT_SEND:
        return "could not hand over its batch: its line above says why"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _after(code: int) -> str:
    if code == -signal.SIGKILL:
        return f"usually out of memory: lower train.loader_workers or train.loader_cache_mib; {_GO_ON}"
    if code == -signal.SIGBUS:
        return f"shared memory is full: df {FOLDER}; or set train.loader_workers=0; {_GO_ON}"
    return f"{_GO_ON}; without reader processes: train.loader_workers=0"


def _cannot_start(error: Exception) -> ReadersLost:
    return ReadersLost(f"the reader processes cannot be started: {_first_line(error)}", hint=_hint(error))


def _hint(error: Exception) -> str:
    if "ancdata" in str(error) or "open files" in str(error):  # torch and Python have no class for this error
        return f"the limit is {open_files()} open files: ulimit -n 4096 raises it; or set train.loader_workers=0"
    return f"{_GO_ON}; without reader processes: train.loader_workers=0"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _warn_of_little_room(batch_size: int, side: int, readers: int) -> None:
    needed, free = needed_bytes(batch_size=batch_size, side=side, readers=readers), free_bytes()
    if needed > (free or 0):
        _log.warning(
            "%s has %s free, and the batches of %d reader processes need %s: batches that do not fit go through "
            "pipes, which is slower; %s",
            FOLDER,
            size_text(free or 0, binary=True),
            readers,
            size_text(needed, binary=True),
            enlarge_hint(needed),
        )


def _kill(readers: Sequence[multiprocessing.Process]) -> None:
    for reader in readers:
        reader.kill()


class _Sent(Dataset[Packed | MagicsegError | OSError]):
    """Return packed batches. Return errors as values, since the loader would add a traceback to their messages."""

    def __init__(self, dataset: SampleDataset) -> None:
        self._dataset = dataset

    def __getitems__(self, picks: Sequence[Pick]) -> Packed | MagicsegError | OSError:
        try:
            return pack(self._dataset.__getitems__(picks))
        except (MagicsegError, OSError) as error:
            return error


def _begin_reading(worker: int) -> None:
    cv2.setNumThreads(1)  # there are several reader processes already
    # A queue thread sends the batch. By default it prints a traceback on an error and drops the batch.
    Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]
    _end_with_reader(worker)


def _cannot_send(error: Exception, _batch: object) -> NoReturn:
    print(f"reader process {os.getpid()}: {type(error).__name__}: {_first_line(error)}", file=sys.stderr, flush=True)
    os._exit(_CANNOT_SEND)


def _end_with_reader(_worker: int) -> None:
    """End a reader process when its training process is killed.

    torch watches the operating system's parent, but that is the fork server, which outlives the training process.
    """
    reader = multiprocessing.parent_process()
    assert reader is not None

    def watch() -> None:
        reader.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_is(batch: object) -> object:
    return batch
