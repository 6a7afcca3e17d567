"""One shard of one stage: read, call the back end in fixed batches, write, commit."""

import datetime
import json
import resource
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from magicseg.backends import Quality, Rejection, Retry
from magicseg.config.stage_declarations import DECLARATIONS, stage_above
from magicseg.core.errors import BackendError, IncompleteError, MagicsegError
from magicseg.core.files import storage_errors, to_json
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command
from magicseg.run.claims import job_label
from magicseg.run.directory import CONFIG_NAME, Run
from magicseg.run.drop_rates import fallback_in
from magicseg.run.ledger import CommitRecord
from magicseg.run.versions import library_versions
from magicseg.stages.base import Stage, stage_code
from magicseg.stages.placement import batches_at_once
from magicseg.stages.retries import answered_in_batches
from magicseg.stages.shortage import explained_shortage, is_shortage


class Stopped(Exception):  # not an error: somebody asked
    """The shard was abandoned at a batch boundary because a stop was asked for."""


class ShardFailed(MagicsegError):
    """A whole shard failed. Other shards continue."""

    exit_code = 1


def load_backend(run: Run, stage: str) -> Any:
    """Load a stage's configured back end and its weights, once per job. Raises BackendError."""
    declaration = DECLARATIONS[stage]
    settings = declaration.settings(run.config)
    backend, options = declaration.backend(run.config)
    run.refuse_unfetched(stage)
    try:
        made = stage_code(stage).start(run.config, backend, options)
        check_labels = getattr(made, "check_labels", None)
        if check_labels is not None:
            check_labels(run.vocabulary.labels)
    except MagicsegError:
        raise
    except Exception as error:  # foreign code; it would fail in every worker alike
        raise BackendError(
            f"back end {settings.backend!r} of {stage} cannot start: {type(error).__name__}: {error}",
            hint=f"check {stage}.options in {run.path / CONFIG_NAME}",
        ) from error
    return made


def execute_shard(
    run: Run,
    stage: str,
    shard: int,
    backend: Any,
    should_stop: Callable[[], bool],
    check: Callable[[int, Mapping[str, int], Mapping[str, int]], None] = lambda kept, dropped, fallbacks: None,
) -> CommitRecord:
    """Do and commit one shard.

    Args: check: called before anything is written, with the number of kept samples, and the drops and fallbacks by
    reason; it raises to prevent the commit.
    Raises Stopped if a stop was requested, ShardFailed if all samples failed, StoreError if storage fails,
    IncompleteError if the stage above has not done this shard.
    """
    began = time.monotonic()
    code = stage_code(stage)
    samples = run.plan.shard_range(shard)
    todo = _kept_upstream(run, stage, shard, samples)
    notes: dict[int, Rejection | Quality] = {}  # an answer's images would take memory twice
    batch_size = DECLARATIONS[stage].settings(run.config).batch_size
    with storage_errors(run.path, command("magicseg", "verify", run.path)):
        requests = code.requests(run, todo) if todo else []
    packed: dict[int, Future[Any]] = {}

    def stop_if_asked() -> None:
        if should_stop():
            raise Stopped

    def attempt(batch: Sequence[Any]) -> list[Any]:
        return _answers(run, code, backend, batch)

    with ThreadPoolExecutor(1, thread_name_prefix="pack") as packer:  # images are encoded meanwhile
        for position, answer in answered_in_batches(
            requests, batch_size, attempt, stop_if_asked, batches_at_once(run.config, stage)
        ):
            index = requests[position].index
            if isinstance(answer, Rejection):
                notes[index] = answer
            else:
                notes[index] = answer.quality
                packed[index] = packer.submit(code.packed, run, answer)
    dropped = Counter(note.reason for note in notes.values() if isinstance(note, Rejection))
    fallbacks = Counter(
        reason for note in notes.values() if not isinstance(note, Rejection) and (reason := fallback_in(note))
    )
    check(len(packed), dropped, fallbacks)
    _refuse_total_failure(stage, shard, notes)
    values = code.arrays(run, samples, {index: future.result() for index, future in packed.items()})
    values[f"{stage}/quality"] = _quality(samples, notes)
    files = run.store.write_shard(shard, samples, values)
    record = CommitRecord(
        shard=shard,
        fingerprint=run.fingerprints[stage].digest,
        samples=len(samples),
        kept=format_ranges(index - samples.start for index in packed),
        dropped=dict(dropped),
        fallbacks=dict(fallbacks),
        files=files,
        seconds=round(time.monotonic() - began, 4),
        peak_memory=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        host=socket.gethostname(),
        job=job_label(),
        peak_gpu_memory=_peak_gpu_memory(),
        versions=library_versions() | _gpu_name(),
    )
    with storage_errors(run.path, command("magicseg", stage, run.path)):
        run.ledger(stage).commit(record, run.fingerprints[stage])
    return record


def _gpu_name() -> dict[str, str]:
    """Return the name of the GPU in use, if any, because another kind computes other bits."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return {}
    return {"gpu": str(torch.cuda.get_device_name())}


def _peak_gpu_memory() -> int:
    """Return the peak GPU memory of this process in bytes; 0 without a GPU. Does not import torch."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return int(torch.cuda.max_memory_allocated())


def _kept_upstream(run: Run, stage: str, shard: int, samples: range) -> list[int]:
    above = stage_above(stage)
    if above is None:
        return list(samples)
    record = run.ledger(above).committed(shard)
    if record is None:
        raise IncompleteError(
            f"shard {shard} of {stage} needs {above}, which has not done it",
            hint=command("magicseg", above, run.path),
        )
    run.refuse_stale(above, {shard: record})
    return [samples.start + offset for offset in record.kept_offsets()]


def _answers(run: Run, code: Stage, backend: Any, batch: Sequence[Any]) -> list[Any]:
    """Return a batch's answers. If the batch as a whole fails, its samples are tried alone, to find the bad one.

    Raises OutOfMemory if the device has no memory for the batch.
    """
    try:
        answers = list(code.call(backend, batch))
        if len(answers) != len(batch):
            raise ValueError(f"the back end gave {len(answers)} answers to {len(batch)} requests")
    except MagicsegError:
        raise
    except Exception as error:  # a back end is foreign code: whatever it raises is recorded, per sample
        if is_shortage(error):  # no sample is at fault
            stage = code.declaration
            raise explained_shortage(stage.name, stage.settings(run.config).batch_size, error) from error
        if len(batch) == 1:
            return [_rejection(error)]
        return [_answers(run, code, backend, [request])[0] for request in batch]
    for position, answer in enumerate(answers):
        if not isinstance(answer, Rejection | Retry):
            try:
                code.check(run, answer)
                json.dumps(answer.quality, allow_nan=False, ensure_ascii=False).encode()
            except Exception as error:  # an answer may be anything
                answers[position] = _rejection(error)
    return answers


def _rejection(error: Exception) -> Rejection:
    return Rejection(reason="error", detail=f"{type(error).__name__}: {error}"[:500])


def _refuse_total_failure(stage: str, shard: int, notes: Mapping[int, Rejection | Quality]) -> None:
    errors = [answer for answer in notes.values() if isinstance(answer, Rejection) and answer.reason == "error"]
    if errors and len(errors) == len(notes):
        raise ShardFailed(f"{stage} of shard {shard}: all {len(errors)} samples failed: {errors[0].detail}")


def _quality(samples: range, notes: Mapping[int, Rejection | Quality]) -> Any:
    texts = np.empty(len(samples), dtype=object)
    for position, index in enumerate(samples):
        answer = notes.get(index)
        if answer is None:
            entry: dict[str, Any] = {"status": "dropped", "reason": "upstream"}
        elif isinstance(answer, Rejection):
            entry = {"status": "dropped", "reason": answer.reason, "detail": answer.detail}
        else:
            entry = {"status": "kept", **answer}
        texts[position] = to_json(entry).decode()
    return texts
