"""Export a data set to one HDF5 file, and import it from there.

Layout: ``images``, ``counterfactuals`` (uint8 (N, H, W, 3), or one JPEG stream per sample), ``masks`` (uint16
(N, H, W)), ``captions`` (N, 2), ``quality`` (N, 3: one JSON text per stage), ``labels`` (uint16 (N, max_labels));
attributes ``config`` (YAML), ``vocabulary``, ``dropped``, ``fingerprints`` and ``weights`` (JSON), ``digest``,
``format``.
"""

import datetime
import io
import json
import os
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NotRequired

import h5py
import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypedDict

from magicseg.config.loading import validate_config
from magicseg.config.stage_declarations import ARRAY_KINDS, DECLARATIONS, STAGES, ArrayKind
from magicseg.core.documents import parse_json, parse_yaml
from magicseg.core.errors import ConfigError, DataError, IncompleteError, LabelError, MagicsegError, RunError
from magicseg.core.files import fsync_path, publish, storage_errors, temporary_beside
from magicseg.core.shard_ranges import format_ranges
from magicseg.core.text import command, first_control_character, printable
from magicseg.exchange.hdf5_checks import ExportedFile
from magicseg.images.codecs import check_jpeg
from magicseg.labels import IGNORE, Vocabulary
from magicseg.run.digest import logical_digest
from magicseg.run.directory import Run, remove
from magicseg.run.drop_rates import fallback_in
from magicseg.run.ledger import CommitRecord
from magicseg.run.versions import library_versions
from magicseg.store.size_limits import TEXT_BYTES
from magicseg.weights.manifest import Manifest

FORMAT = 1
_STREAM_BYTES = 1 << 16  # allowance for the headers of a JPEG stream
# Exceptions of h5py and of decoders for damaged content.
_UNREADABLE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError)
_NAMES = {  # the datasets, in the order of their creation; ``quality`` has one column per stage
    "generate/image": "images",
    "generate/counterfactual": "counterfactuals",
    "mask/mask": "masks",
    "describe/captions": "captions",
}


if TYPE_CHECKING:
    _Fingerprints = dict[str, str]
else:
    _Fingerprints = TypedDict("_Fingerprints", dict.fromkeys(STAGES, str))


class _Note(TypedDict):
    status: Literal["kept", "dropped"]
    reason: NotRequired[str]


def export_hdf5(run: Run, out: Path, progress: Callable[[int], None] = lambda shard: None) -> None:
    """Write a finished data set to one file, shard by shard. The file appears when it is complete.

    Raises: IncompleteError if shards are missing; DataError if ``out`` exists.
    """
    taken = DataError(f"{out}: exists", hint="choose another file")
    with storage_errors(out, "choose another file, or run the same command again"):
        if os.path.lexists(out):
            raise taken
        digest = logical_digest(run)
        temporary = temporary_beside(out)
        try:
            with temporary.open("x+b", buffering=0) as raw:  # refuses links
                sink = _Sink(raw)
                with h5py.File(sink, "w") as file:
                    _fill(file, run, digest, sink, progress)
                sink.refuse_errors()
                os.fsync(raw.fileno())
            if not publish(temporary, out):
                raise taken
        finally:
            temporary.unlink(missing_ok=True)
        fsync_path(out.parent)


def _fill(file: h5py.File, run: Run, digest: str, sink: "_Sink", progress: Callable[[int], None]) -> None:
    plan, store = run.plan, run.store
    _create(file, run)
    for shard in range(plan.shards):
        samples = plan.shard_range(shard)
        cut = slice(samples.start, samples.stop)
        for source, target in _NAMES.items():
            values = store.read(source, cut.start, cut.stop)
            kind = ARRAY_KINDS[source]
            if values.dtype == object and kind is ArrayKind.IMAGE:
                for index, stream in zip(samples, values, strict=True):
                    file[target][index] = np.frombuffer(stream, np.uint8)
                continue
            if kind is ArrayKind.CAPTIONS:
                _refuse_nul(run, samples, values)
                values = values.astype(object)
            file[target][cut] = values
        for column, stage in enumerate(STAGES):
            file["quality"][cut, column] = store.read(f"{stage}/quality", cut.start, cut.stop).astype(object)
        sink.refuse_errors()
        progress(shard)
    file.attrs["config"] = run.config.to_yaml()
    file.attrs["vocabulary"] = json.dumps(plan.vocabulary.to_dict())
    file.attrs["weights"] = json.dumps(run.manifest.to_dict())
    file.attrs["fingerprints"] = json.dumps({stage: run.fingerprints[stage].digest for stage in STAGES})
    file.attrs["digest"] = digest
    file.attrs["format"] = FORMAT


def _refuse_nul(run: Run, samples: range, captions: Any) -> None:
    """Raise DataError that names the sample if a caption contains U+0000, which ends strings in HDF5."""
    for index, pair in zip(samples, captions, strict=True):
        if any("\0" in str(text) for text in pair):
            raise DataError(
                f"{run.path}: a caption of sample {index} holds U+0000, which HDF5 strings cannot hold",
                hint=f"{command('magicseg', 'reset', 'describe', run.path)}   # then make captions and images again",
            )


class _Sink:
    """A file object for HDF5 that hides write errors, such as a full disk. `refuse_errors` raises them later.

    HDF5 cannot close its file after a failed write, and prints errors to standard error.
    """

    def __init__(self, raw: io.FileIO) -> None:
        self._raw = raw
        self._error: OSError | None = None

    def refuse_errors(self) -> None:
        """Raise the first OSError of this file, if any."""
        if self._error is not None:
            raise self._error

    def write(self, data: Any) -> int:
        """Write all data. After an error, pretend to."""
        view = memoryview(data).cast("B")
        done = 0
        try:
            while done < len(view) and self._error is None:
                done += self._raw.write(view[done:])
        except OSError as error:
            self._error = error
        return len(view)

    def read(self, size: int = -1) -> bytes:
        """Read bytes. h5py requires this method, but calls `readinto`."""
        return self._raw.read(size) or b""

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer, with zeros beyond the end of the file."""
        view = memoryview(buffer).cast("B")
        count = self._raw.readinto(view) or 0
        view[count:] = bytes(len(view) - count)
        return len(view)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position."""
        return self._raw.seek(offset, whence)

    def tell(self) -> int:
        """Return the current position."""
        return self._raw.tell()

    def truncate(self, size: int | None = None) -> int:
        """Set the length of the file."""
        try:
            return self._raw.truncate(size)
        except OSError as error:
            self._error = self._error or error
            return size or 0

    def flush(self) -> None:
        """Do nothing: writes are unbuffered."""


def import_hdf5(source: Path, path: Path, progress: Callable[[int], None] = lambda shard: None) -> Run:
    """Create a finished run from an exported file. Call it again to resume after an interruption.

    If the file is refused, a new run is removed again.

    Raises: DataError if the file is not an export of magicseg; RunError or IncompleteError if its content does not
    match its settings or its digest.
    """
    is_there = path.is_dir()
    is_new = not path.exists() or (is_there and not any(path.iterdir()))
    try:
        with ExportedFile(source) as exported:
            return _import(exported, source, path, progress)
    except (DataError, ConfigError, LabelError, RunError, IncompleteError):
        if is_new and path.exists():
            with storage_errors(path, command("rm", "-r", path)):
                remove(path)
                if is_there:
                    path.mkdir()
        raise


def _import(exported: ExportedFile, source: Path, path: Path, progress: Callable[[int], None]) -> Run:
    file = exported.file
    try:
        if file.attrs["format"] != FORMAT:
            raise DataError(f"{source}: has format {file.attrs['format']}, this version reads {FORMAT}")
        config = validate_config(parse_yaml(exported.text("config"), source=source), source=str(source))
        vocabulary = Vocabulary.from_dict(parse_json(exported.text("vocabulary"), dict[str, Any], source=source))
        expected = exported.text("digest")
        fingerprints = parse_json(exported.text("fingerprints"), _Fingerprints, source=source)
        manifest = Manifest.from_dict(parse_json(exported.text("weights"), dict[str, Any], source=source))
        exported.check_datasets(config)
        classes = file["labels"][:]
    except _UNREADABLE as error:
        if isinstance(error, MagicsegError):
            raise
        raise DataError(f"{source}: is not a data set exported by magicseg: {error}") from None
    run = Run.create(path, config, vocabulary)
    if manifest.names and not run.manifest.names:
        manifest.write(run.path)  # fingerprints depend on it
        run = Run.open(run.path)
    if run.vocabulary != vocabulary or not np.array_equal(classes, run.plan.classes):
        raise RunError(
            f"{source}: its plan differs from the one that its configuration gives here",
            hint="was it made with another version of magicseg, or with a label list that has changed since?",
        )
    again = command("magicseg", "import", source, "--into", path)
    try:
        for shard in range(run.plan.shards):
            try:
                content = {stage: _read_stage(exported, run, shard, stage) for stage in STAGES}
            except _UNREADABLE as error:
                if isinstance(error, MagicsegError):
                    raise
                raise DataError(f"{source}: samples of shard {shard} cannot be read: {error}") from error
            with storage_errors(path, again):
                for stage in STAGES:
                    _import_shard(run, shard, stage, content[stage], fingerprints[stage])
            progress(shard)
        actual = logical_digest(run)
        if actual != expected:
            raise IncompleteError(
                f"{path}: holds {actual}, but {source} says {printable(expected, 80)}",
                hint="the file is damaged: export it again",
            )
    except (DataError, IncompleteError):
        with storage_errors(path, command("rm", "-r", path)):  # no shard from the file may stay committed
            for stage in STAGES:
                commits = run.ledger(stage).commits().items()
                run.ledger(stage).take_back({shard for shard, record in commits if record.imported_from})
        raise
    with storage_errors(path, again):
        for stage in STAGES:
            run.ledger(stage).compact(run.ledger(stage).commits())
    return run


def _create(file: h5py.File, run: Run) -> None:
    plan, size = run.plan, run.config.generate.size
    samples = plan.samples
    text = h5py.string_dtype()
    for source, target in _NAMES.items():
        if ARRAY_KINDS[source] is ArrayKind.CAPTIONS:
            file.create_dataset(target, (samples, 2), text)
        elif ARRAY_KINDS[source] is ArrayKind.CLASS_MAP:
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


def _read_stage(exported: ExportedFile, run: Run, shard: int, stage: str) -> dict[str, Any] | None:
    """Return one shard's content of a stage, by array name; None if the shard is already committed."""
    if run.ledger(stage).committed(shard) is not None:
        return None
    samples = run.plan.shard_range(shard)
    exported.check_samples("quality", samples.start, samples.stop, most=TEXT_BYTES)
    texts = exported.file["quality"].asstr()[samples.start : samples.stop, STAGES.index(stage)]
    is_kept = []
    for index, text in zip(samples, texts, strict=True):
        note = parse_json(text, _Note, source=f"quality of sample {index} in {stage}", nan=True)
        reason = note.get("reason", "")
        if note["status"] == "dropped" and (not reason or first_control_character(reason)):
            raise ValueError(f"sample {index} does not say why it was dropped")
        is_kept.append(note["status"] == "kept")
    values: dict[str, Any] = {f"{stage}/quality": texts.astype(object)}
    for name, kind in DECLARATIONS[stage].store_arrays.items():
        if kind is not ArrayKind.QUALITY:
            values[name] = _read_array(exported, run, name, kind, samples, is_kept)
    return values


def _read_array(
    exported: ExportedFile, run: Run, name: str, kind: ArrayKind, samples: range, is_kept: Sequence[bool]
) -> NDArray[Any]:
    """Return one shard's content of an array, checked. ``name``: the array's path in the store."""
    target, size = _NAMES[name], run.config.generate.size
    start, stop = samples.start, samples.stop
    dataset = exported.file[target]
    if kind is ArrayKind.CAPTIONS:
        exported.check_samples(target, start, stop, most=TEXT_BYTES)
        return np.asarray(dataset.asstr()[start:stop].astype(object))
    if kind is ArrayKind.CLASS_MAP:
        exported.check_samples(target, start, stop, most=2 * size * size)
        masks = np.asarray(dataset[start:stop])
        if ((masks > len(run.vocabulary)) & (masks != IGNORE)).any():
            raise ValueError("a mask holds an unknown label id")
        return masks
    if not run.store.is_jpeg(name):
        exported.check_samples(target, start, stop, most=3 * size * size)
        return np.asarray(dataset[start:stop])
    exported.check_samples(target, start, stop, most=_STREAM_BYTES + 6 * size * size)
    streams = np.empty(len(samples), dtype=object)
    streams[:] = [array.tobytes() for array in dataset[start:stop]]
    for index, stream, kept in zip(samples, streams, is_kept, strict=True):
        if stream:
            check_jpeg(stream, size)
        elif kept:
            raise ValueError(f"sample {index} of {name} is empty, but kept")
    return streams


def _import_shard(run: Run, shard: int, stage: str, values: dict[str, Any] | None, origin: str) -> None:
    if values is None:
        return
    samples = run.plan.shard_range(shard)
    entries = [json.loads(text) for text in values[f"{stage}/quality"]]
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
        imported_from=origin,
        fallbacks=dict(Counter(filter(None, map(fallback_in, entries)))),
    )
    run.ledger(stage).commit(record, run.fingerprints[stage])
