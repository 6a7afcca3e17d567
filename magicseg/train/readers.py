"""Reading processes: batches made by other processes, delivered in order.

No wait for them is without an end. Training ends with an error that says why, if a reader dies, or cannot deliver,
or delivers nothing for `loader_timeout` seconds; and a signal that asks training to stop is heard meanwhile.
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

from magicseg.errors import IncompleteError, MagicsegError
from magicseg.execute.signals import fork_server, open_files
from magicseg.execute.waiting import bounded
from magicseg.train.data import Batch, Mixture, SampleDataset, Samples, Steps, input_size, order_of
from magicseg.train.data_settings import DataSettings
from magicseg.train.distributed import ALONE, World
from magicseg.train.order import Pick
from magicseg.train.packing import Packed, pack, unpack
from magicseg.train.shared_memory import FOLDER, PREFETCHED, enlarge_hint, free_bytes, mebibytes, needed_bytes

_CANNOT_SEND = 74  # EX_IOERR of sysexits.h
_STOP_GRACE_SECONDS = 15.0  # in which a batch may still come after a stop was asked for
_log = logging.getLogger(__name__)
# torch's orderly end of a loader waits for threads that wait for the lost reader: it must not begin.
_abandoned: list[object] = []


class ReadersLost(IncompleteError):
    """No more batches come: a reading process is gone or stuck."""


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
    """This process's part of the batches of the steps ``start`` up to, not including, ``stop``.

    Args: batch_size: of all processes together. should_stop: asked while a batch is waited for.
    Raises: ConfigError, see `input_size`; DataError or DamageError, naming the file, for what cannot be read;
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
    """The batches of ``steps``, in order, read by ``workers`` processes (0: by this one).

    The processes come from a fork server: a store's threads do not survive a plain fork. They end with their
    reader, which may still need a batch when a signal to the whole process group has asked it to stop.

    Args: patience: seconds to wait for a batch.
    Raises: DataError or DamageError, naming the file, when its batch is asked for; ReadersLost.
    """
    loader = DataLoader(
        _Sent(dataset) if workers else dataset,
        batch_sampler=steps,
        collate_fn=cast("Any", _as_is),  # what __getitems__ returns is a batch already
        num_workers=workers,
        prefetch_factor=PREFETCHED if workers else None,
        multiprocessing_context="forkserver" if workers else None,
        pin_memory=pin_memory,
        worker_init_fn=_begin_reading,
        generator=torch.Generator(),  # else the loader draws from, and so moves, the global one
    )
    if not workers:
        return iter(loader)
    return _Readers(loader, patience, should_stop, pin_memory=pin_memory).batches()


class _Readers:
    """Starts the processes of a loader, and waits for their batches."""

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
        # torch keeps a current device for each thread, and allocates pinned memory for it.
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
        # When a fault ends this process, its traceback still holds the batches. At exit, multiprocessing would ask
        # the readers to terminate, which they do not hear, and wait for them: what has a priority, it does before.
        Finalize(self._batches, _kill, args=(self._processes,), exitpriority=1)

    def batches(self) -> Iterator[Batch]:
        """All of them. Raises: ReadersLost; DataError, DamageError, OSError of a reader."""
        while True:
            self._stopping_since = None
            try:
                batch = bounded(lambda: next(self._batches, None), self._look)
            except ReadersLost:
                _abandoned.append(self._batches)
                raise
            except (RuntimeError, OSError, EOFError) as error:
                if str(error).startswith("Caught "):  # in a reader: a fault of ours, whose traceback is wanted
                    raise
                _abandoned.append(self._batches)
                self._refuse_dead()
                raise ReadersLost(
                    f"a batch of the reading processes cannot be received: {_first_line(error)}", hint=_hint(error)
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
                f"the reading processes delivered no batch within {self._patience:.0f} s",
                hint="does the storage answer? ls RUN; if it is only slow, raise train.loader_timeout",
            )

    def _refuse_dead(self) -> None:
        for process in self._processes:
            code = process.exitcode
            if code:
                raise ReadersLost(f"reading process {process.pid} {_ending(code)}", hint=_after(code))


_GO_ON = "the same command goes on from the newest checkpoint"


def _ending(code: int) -> str:
    if code == _CANNOT_SEND:
        return "could not hand over its batch: its line above says why"
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _after(code: int) -> str:
    if code == -signal.SIGKILL:
        return f"mostly for lack of memory: lower train.loader_workers or train.loader_cache_mib; {_GO_ON}"
    if code == -signal.SIGBUS:
        return f"shared memory is full: df {FOLDER}; or set train.loader_workers=0; {_GO_ON}"
    return f"{_GO_ON}; without reading processes: train.loader_workers=0"


def _cannot_start(error: Exception) -> ReadersLost:
    return ReadersLost(f"the reading processes cannot be started: {_first_line(error)}", hint=_hint(error))


def _hint(error: Exception) -> str:
    if "ancdata" in str(error) or "open files" in str(error):  # torch and Python have no class for it
        return f"{open_files()} files may be open: ulimit -n 4096 allows more; or set train.loader_workers=0"
    return f"{_GO_ON}; without reading processes: train.loader_workers=0"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _warn_of_little_room(batch_size: int, side: int, readers: int) -> None:
    needed, free = needed_bytes(batch_size=batch_size, side=side, readers=readers), free_bytes()
    if needed > (free or 0):
        _log.warning(
            "%s has %s free, and the batches of %d reading processes need %s: what does not fit goes through pipes, "
            "which is slower; %s",
            FOLDER,
            mebibytes(free or 0),
            readers,
            mebibytes(needed),
            enlarge_hint(needed),
        )


def _kill(readers: Sequence[multiprocessing.Process]) -> None:
    for reader in readers:
        reader.kill()


class _Sent(Dataset[Packed | MagicsegError | OSError]):
    """Batches packed; and errors as they are: the loader would put a traceback into their message."""

    def __init__(self, dataset: SampleDataset) -> None:
        self._dataset = dataset

    def __getitems__(self, picks: Sequence[Pick]) -> Packed | MagicsegError | OSError:
        try:
            return pack(self._dataset.__getitems__(picks))
        except (MagicsegError, OSError) as error:
            return error


def _begin_reading(worker: int) -> None:
    cv2.setNumThreads(1)  # the readers are many already
    # A batch is sent by a thread of the queue, which would print a traceback and go on without the batch.
    Queue._on_queue_feeder_error = staticmethod(_cannot_send)  # type: ignore[attr-defined]
    _end_with_reader(worker)


def _cannot_send(error: Exception, _batch: object) -> NoReturn:
    print(f"reading process {os.getpid()}: {type(error).__name__}: {_first_line(error)}", file=sys.stderr, flush=True)
    os._exit(_CANNOT_SEND)


def _end_with_reader(_worker: int) -> None:
    """Have a reading process end when the process it reads for is killed.

    torch looks at the parent in the sense of the operating system: the fork server, which waits for its children.
    """
    reader = multiprocessing.parent_process()
    assert reader is not None

    def watch() -> None:
        reader.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _as_is(batch: object) -> object:
    return batch
