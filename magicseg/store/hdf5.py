"""A whole data set in one HDF5 file, and back.

Layout: ``images``, ``counterfactuals`` (uint8 (N, H, W, 3), or one JPEG stream per sample), ``masks`` (uint16
(N, H, W)), ``captions`` (N, 2), ``quality`` (N, 3: one JSON text per stage), ``labels`` (uint16 (N, max_labels));
attributes ``config`` (YAML), ``vocabulary``, ``dropped`` and ``fingerprints`` (JSON), ``digest``, ``format``.
"""

import datetime
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import yaml

from magicseg.config import validate_config
from magicseg.errors import ConfigError, DataError, IncompleteError, RunError
from magicseg.labels import Vocabulary
from magicseg.run.directory import Run
from magicseg.run.files import TEMPORARY, storage_errors
from magicseg.run.fingerprint import STAGES
from magicseg.run.ledger import CommitRecord
from magicseg.run.ranges import format_ranges
from magicseg.run.versions import library_versions
from magicseg.store.dataset import ARRAYS
from magicseg.store.digest import logical_digest

FORMAT = 1
_NAMES = {
    "generate/image": "images",
    "generate/counterfactual": "counterfactuals",
    "mask/mask": "masks",
    "describe/captions": "captions",
}


def export_hdf5(run: Run, out: Path, progress: Callable[[int], None] = lambda shard: None) -> None:
    """Write a finished data set into one file, shard by shard; the file appears when it is whole.

    Raises: IncompleteError when shards are missing, DataError if ``out`` exists.
    """
    if out.exists():
        raise DataError(f"{out}: exists", hint="choose another file")
    plan, store = run.plan, run.store
    digest = logical_digest(run)
    temporary = out.with_name(out.name + TEMPORARY)
    try:
        with (
            storage_errors(out, "choose a place with free space that you can write to"),
            h5py.File(temporary, "w") as file,
        ):
            _create(file, run)
            for shard in range(plan.shards):
                samples = plan.shard_range(shard)
                cut = slice(samples.start, samples.stop)
                for source, target in _NAMES.items():
                    values = store.read(source, cut.start, cut.stop)
                    if values.dtype == object and source in ARRAYS["generate"]:
                        values = _byte_arrays(values)
                    file[target][cut] = values.astype(object) if source == "describe/captions" else values
                for column, stage in enumerate(STAGES):
                    file["quality"][cut, column] = store.read(f"{stage}/quality", cut.start, cut.stop).astype(object)
                progress(shard)
            file.attrs["config"] = run.config.to_yaml()
            file.attrs["vocabulary"] = json.dumps(plan.vocabulary.to_dict())
            file.attrs["fingerprints"] = json.dumps({stage: run.fingerprints[stage].digest for stage in STAGES})
            file.attrs["digest"] = digest
            file.attrs["format"] = FORMAT
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def import_hdf5(source: Path, path: Path, progress: Callable[[int], None] = lambda shard: None) -> Run:
    """Make a finished run of an exported file. Going on after an interruption is calling it again.

    Raises: DataError if the file is not such an export or its content does not match its digest.
    """
    try:
        file = h5py.File(source, "r")
    except OSError as error:
        raise DataError(f"{source}: cannot be opened as HDF5: {error}") from None
    with file:
        try:
            if file.attrs["format"] != FORMAT:
                raise DataError(f"{source}: has format {file.attrs['format']}, this version reads {FORMAT}")
            config = validate_config(yaml.safe_load(file.attrs["config"]), source=str(source))
            vocabulary = Vocabulary.from_dict(json.loads(file.attrs["vocabulary"]))
            expected = str(file.attrs["digest"])
            fingerprints = json.loads(file.attrs["fingerprints"])
        except (KeyError, ValueError, yaml.YAMLError) as error:
            if isinstance(error, DataError | ConfigError):
                raise
            raise DataError(f"{source}: is not a data set exported by magicseg: {error}") from None
        run = Run.create(path, config, vocabulary)
        if run.vocabulary != vocabulary or not np.array_equal(file["labels"][:], run.plan.classes):
            raise RunError(
                f"{source}: its plan differs from the one that its configuration gives here",
                hint="was it made with another version of magicseg, or with a label list that has changed since?",
            )
        for shard in range(run.plan.shards):
            try:
                _import_shard(file, run, shard, fingerprints)
            except (OSError, KeyError, ValueError) as error:
                raise DataError(f"{source}: samples of shard {shard} cannot be read: {error}") from error
            progress(shard)
        for stage in STAGES:
            run.ledger(stage).compact(run.ledger(stage).commits())
        actual = logical_digest(run)
    if actual != expected:
        raise IncompleteError(
            f"{path}: holds {actual}, but {source} says {expected}",
            hint="the file is damaged: export it again",
        )
    return run


def _create(file: h5py.File, run: Run) -> None:
    plan, size = run.plan, run.config.generate.size
    samples = plan.samples
    text = h5py.string_dtype()
    for source, target in _NAMES.items():
        if source == "describe/captions":
            file.create_dataset(target, (samples, 2), text)
        elif source == "mask/mask":
            file.create_dataset(
                target, (samples, size, size), np.uint16, chunks=(1, size, size), compression="gzip",
                compression_opts=1, shuffle=True, fletcher32=True,
            )  # fmt: skip
        elif run.store.is_jpeg(source):
            file.create_dataset(target, (samples,), h5py.vlen_dtype(np.uint8))
        else:
            file.create_dataset(
                target, (samples, size, size, 3), np.uint8, chunks=(1, size, size, 3), compression="lzf",
                fletcher32=True,
            )  # fmt: skip
    file.create_dataset("quality", (samples, len(STAGES)), text)
    file.create_dataset("labels", data=plan.classes)


def _byte_arrays(streams: Any) -> Any:
    arrays = np.empty(len(streams), dtype=object)
    for position, stream in enumerate(streams):
        arrays[position] = np.frombuffer(stream, np.uint8)
    return arrays


def _import_shard(file: h5py.File, run: Run, shard: int, fingerprints: dict[str, str]) -> None:
    samples = run.plan.shard_range(shard)
    cut = slice(samples.start, samples.stop)
    for column, stage in enumerate(STAGES):
        ledger = run.ledger(stage)
        if ledger.committed(shard) is not None:
            continue
        texts = file["quality"].asstr()[cut, column]
        values: dict[str, Any] = {f"{stage}/quality": texts.astype(object)}
        for name in ARRAYS[stage]:
            if name == "describe/captions":
                values[name] = file["captions"].asstr()[cut].astype(object)
            elif name in _NAMES:
                content = file[_NAMES[name]][cut]
                if content.dtype == object:
                    streams = np.empty(len(content), dtype=object)
                    streams[:] = [array.tobytes() for array in content]
                    content = streams
                values[name] = content
        entries = [json.loads(text) for text in texts]
        reasons = [entry["reason"] for entry in entries if entry["status"] == "dropped"]
        record = CommitRecord(
            shard=shard,
            fingerprint=run.fingerprints[stage].digest,
            samples=len(samples),
            kept=format_ranges(offset for offset, entry in enumerate(entries) if entry["status"] == "kept"),
            dropped={reason: reasons.count(reason) for reason in sorted(set(reasons) - {"upstream"})},
            files=run.store.write_shard(shard, samples, values),
            seconds=0.0,
            peak_memory=0,
            finished=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            host=socket.gethostname(),
            job="",
            versions=library_versions(),
            imported_from=fingerprints[stage],
        )
        ledger.commit(record, run.fingerprints[stage])
