"""Raw dataset -> store, case by case, in parallel, and where it stopped before.

A case is done when its folder is there under its own name: it is written under a hidden name and
renamed. The manifest comes last, so a store without it is one whose conversion has not ended.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from segresmamba import __version__
from segresmamba.data import layout
from segresmamba.data.folder import StoreFolder
from segresmamba.data.formats import AUTO, detect, read_source
from segresmamba.data.manifest import (
    CaseRecord,
    SourceFile,
    Storage,
    build_manifest,
    write_manifest,
)
from segresmamba.data.source import SourceCase, SourceDataset
from segresmamba.data.splits import Split, make_splits, read_splits, splits_of
from segresmamba.data.statistics import class_positions, class_voxels, positions_kept
from segresmamba.data.volume import read_label, read_volume
from segresmamba.data.writer import write_case
from segresmamba.errors import DataError

Progress = Callable[[int, int], None]
"""Called with the number of finished cases and of all cases."""

_LISTED_FAILURES = 12  # what fits on a screen


@dataclass(frozen=True)
class Conversion:
    """What `convert` did."""

    store: Path
    converted: tuple[str, ...]
    """Case ids written now."""
    kept: tuple[str, ...]
    """Case ids that were there already, from the same files."""
    digest: str
    """Of the dataset."""

    def __str__(self) -> str:
        return (
            f"{self.store}: {len(self.converted)} cases converted, {len(self.kept)} there already, "
            f"digest {self.digest[:12]}"
        )


def convert(
    source: Path,
    out: Path,
    *,
    format: str = AUTO,
    workers: int = 1,
    resample_mismatched: bool = False,
    splits: Path | Sequence[Split] | None = None,
    redo: Collection[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a dataset to a store.

    Cases that are there already, from files that have not changed, are not redone. When some cases
    are refused, the others are converted nevertheless, and all refusals are reported together.

    Args:
        source: The dataset's folder, or a MONAI datalist.
        out: The store's folder.
        format: One of `formats.FORMATS`, or "auto".
        workers: Processes.
        resample_mismatched: Put images of one case that have another grid than the first onto its
            grid, instead of refusing the case.
        splits: The user's own folds, or a file of them as `read_splits` takes it; else those of
            the format, else five with all cases of a patient on one side.
        redo: Ids of cases to convert anew, whatever is there.
        overwrite: Convert all cases anew, whatever the store holds of another conversion. A folder
            that is no store is never touched.
        progress: See `Progress`.

    Raises:
        DataError: If the source, one of its cases, or the output folder cannot be used.
    """
    if format == AUTO:
        format = detect(source)
    dataset = read_source(source, format)
    folds = _splits(dataset, splits)
    folder = StoreFolder(out, dataset, overwrite=overwrite)
    with folder.locked():
        finished = _finished(dataset, source, out)
        kept = {case_id: finished[case_id] for case_id in finished if case_id not in redo}
        todo = [case for case in dataset.cases if case.case_id not in kept]
        if todo:
            folder.withdraw_manifest()
        report = progress or (lambda done, total: None)
        report(len(kept), len(dataset.cases))
        records, failures = dict(kept), []
        job = partial(_attempt, source, out, dataset, resample_mismatched)
        for number, (case_id, outcome) in enumerate(_run(job, todo, workers), start=1):
            if isinstance(outcome, DataError):
                failures.append((case_id, outcome))
            else:
                records[case_id] = outcome
            report(len(kept) + number, len(dataset.cases))
        if failures:
            folder.remove_if_without_cases()
            raise _all_in_one(sorted(failures, key=lambda failure: failure[0]), dataset, source)
        _require_all_classes(dataset, records, source)
        storage = Storage(
            converter=__version__,
            codec=layout.CODEC,
            chunk_DHW=layout.CHUNK_DHW,
            source=str(source.absolute()),
            format=format,
            resample_mismatched=resample_mismatched,
        )
        manifest = build_manifest(
            dataset.name,
            dataset.channel_names,
            dataset.labels,
            storage,
            records,
            splits=folds,
        )
        write_manifest(manifest, out)
    return Conversion(out, tuple(case.case_id for case in todo), tuple(kept), manifest.digest)


def _splits(dataset: SourceDataset, own: Path | Sequence[Split] | None) -> tuple[Split, ...]:
    case_ids = [case.case_id for case in dataset.cases]
    if isinstance(own, Path):
        return read_splits(own, case_ids)
    if own:
        return tuple(own)
    if dataset.held_out:
        return splits_of(dataset.held_out, case_ids)
    return make_splits(case_ids, {case.case_id: case.patient for case in dataset.cases})


def _finished(dataset: SourceDataset, source: Path, store: Path) -> dict[str, CaseRecord]:
    """Cases that need no work: their folder is there, and their files look as they did."""
    finished = {}
    for case in dataset.cases:
        record = StoreFolder.read_record(store / case.case_id)
        if record is None:
            continue
        try:
            unchanged = record.source == _source_files(case, source)
        except OSError:  # a file is gone; converting the case will say which
            continue
        if unchanged:
            finished[case.case_id] = record
    return finished


def _run(
    job: Callable[[SourceCase], CaseRecord | DataError], cases: Sequence[SourceCase], workers: int
) -> Iterator[tuple[str, CaseRecord | DataError]]:
    if workers == 1:
        yield from ((case.case_id, job(case)) for case in cases)
        return
    context = multiprocessing.get_context("spawn")  # forking a process with threads can deadlock
    with ProcessPoolExecutor(min(workers, max(len(cases), 1)), mp_context=context) as pool:
        futures = {pool.submit(job, case): case.case_id for case in cases}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise DataError(
                "a converter process was killed",
                where="workers",
                got=workers,
                remedy="most likely memory ran out: run again with fewer workers; finished cases "
                "are not redone",
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _attempt(
    source: Path, store: Path, dataset: SourceDataset, resample_mismatched: bool, case: SourceCase
) -> CaseRecord | DataError:
    try:
        return _convert_case(source, store, dataset, resample_mismatched, case)
    except DataError as error:
        return error


def _convert_case(
    source: Path, store: Path, dataset: SourceDataset, resample_mismatched: bool, case: SourceCase
) -> CaseRecord:
    volume = read_volume(
        case.images,
        stacked_channels=len(dataset.channel_names) if case.stacked else 0,
        resample_mismatched=resample_mismatched,
    )
    label_DHW, original = read_label(
        case.label,
        dataset.labels,
        volume.original,
        renumbered=dataset.renumbered,
        resample_mismatched=resample_mismatched,
    )
    voxels = class_voxels(label_DHW)
    affine = volume.affine.tolist()
    record = CaseRecord(
        shape_CDHW=volume.image_CDHW.shape,
        image_dtype=volume.image_CDHW.dtype.name,
        label_dtype=label_DHW.dtype.name,
        spacing_mm=volume.spacing_mm,
        affine=affine,
        original_header=original.text,
        statistics=volume.statistics,
        class_voxels=voxels,
        class_positions={value: positions_kept(count) for value, count in voxels.items()},
        image_digest=digest(volume.image_CDHW),
        label_digest=digest(label_DHW),
        source=_source_files(case, source),
    )
    try:
        write_case(
            store / case.case_id,
            record,
            labels=dataset.labels,
            image_CDHW=volume.image_CDHW,
            label_DHW=label_DHW,
            positions=class_positions(label_DHW, voxels, case.case_id),
        )
    except (OSError, RuntimeError) as error:  # the zarrs library raises the latter
        raise DataError(
            "a case cannot be written",
            where=store / case.case_id,
            got=str(error),
            remedy="free disk space or choose another folder, and run again; nothing of the case "
            "is left and finished cases are not redone",
        ) from error
    return record


def digest(array: npt.NDArray[Any]) -> str:
    """SHA-256 of an array's voxels, dtype and shape."""
    hashed = hashlib.sha256(f"{array.dtype.name}{array.shape}".encode())
    for part in array:  # no copy of the whole
        hashed.update(np.ascontiguousarray(part).data)
    return hashed.hexdigest()


def _source_files(case: SourceCase, source: Path) -> tuple[SourceFile, ...]:
    files = []
    named = (*case.images, case.label)
    series = {path: sorted(path.iterdir()) for path in named if path.is_dir()}
    for path in chain.from_iterable(series.get(path, [path]) for path in named):
        status = path.stat()
        files.append(
            SourceFile(
                path=os.path.relpath(path, source),
                size_bytes=status.st_size,
                modified_ns=status.st_mtime_ns,
            )
        )
    return tuple(files)


def _all_in_one(
    failures: list[tuple[str, DataError]], dataset: SourceDataset, source: Path
) -> DataError:
    """One screen for all refused cases; the error itself if there is only one."""
    if len(failures) == 1:
        return failures[0][1]
    lines = [
        f"{case_id}: {error.problem} ({error.where}: {error.got})"
        for case_id, error in failures[:_LISTED_FAILURES]
    ]
    if len(failures) > _LISTED_FAILURES:
        lines.append(f"and {len(failures) - _LISTED_FAILURES} more")
    return DataError(
        f"{len(failures)} of {len(dataset.cases)} cases are refused; the others are converted",
        where=source,
        got="\n    " + "\n    ".join(lines),
        remedy="correct them and run the same command again: converted cases are not redone. "
        f"For the first: {failures[0][1].remedy}",
    )


def _require_all_classes(
    dataset: SourceDataset, records: dict[str, CaseRecord], source: Path
) -> None:
    found = {value for record in records.values() for value in record.class_voxels}
    missing = {
        name: value for name, value in dataset.labels.items() if value and value not in found
    }
    if missing:
        raise DataError(
            "a declared class occurs in no case",
            where=f"{source / 'dataset.json'}: labels",
            got=", ".join(f"{name} ({value})" for name, value in missing.items()),
            remedy="remove it from labels (then convert with --overwrite), or add cases that show "
            "it: nothing could be learnt of it",
        )
