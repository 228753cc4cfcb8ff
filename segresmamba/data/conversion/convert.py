"""Convert a dataset to a store, case by case, in parallel, from where it stopped before.

A case is written under a hidden name and then renamed, so a folder with a case's own name is
complete. The manifest is written last, so a store without one has not been converted to its end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from segresmamba.data.conversion.case import convert_case, source_files
from segresmamba.data.conversion.case_pool import outcomes
from segresmamba.data.conversion.ct_bounds import lacks_ct_bounds, with_ct_bounds
from segresmamba.data.conversion.plan import ConversionPlan, ConversionRequest
from segresmamba.data.conversion.store_folder import StoreFolder
from segresmamba.data.formats.registry import AUTO
from segresmamba.data.formats.source import SourceCase
from segresmamba.data.preprocessing import Policy
from segresmamba.data.store.manifest import CaseRecord, build_manifest
from segresmamba.data.store.splits import Split
from segresmamba.errors import DataError

logger = logging.getLogger(__name__)

_MIXED_SPACING = 1.5  # ratio of the largest to the smallest

Progress = Callable[[int, int], None]
"""Called with the number of finished cases and of all cases."""

_LISTED_FAILURES = 12  # so that the error fits on a screen


@dataclass(frozen=True)
class Conversion:
    """What `convert` did."""

    store: Path
    converted: tuple[str, ...]
    """Ids of the cases that were converted now."""
    kept: tuple[str, ...]
    """Ids of the cases that were there already, from the same files."""
    digest: str
    """The dataset's digest, see `Manifest`."""

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
    policy: Policy | None = None,
    splits: Path | Sequence[Split] | None = None,
    redo: Collection[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Convert a dataset to a store.

    Cases that were converted before, from files that have not changed since, are kept. If some
    cases are refused, the others are still converted, and all refusals are reported together.

    Args:
        source: The dataset's folder, or a MONAI datalist.
        out: The store's folder.
        format: A name in `formats.registry.FORMATS`, or "auto".
        workers: Number of processes.
        resample_mismatched: Resample files on another grid than the case's first image onto that
            grid, instead of refusing the case.
        policy: Voxel size, crop, intensities and dtype of the store; by default as in the files. A
            store is made under one policy: another one is refused unless `overwrite` is set.
        splits: Folds, or a file of folds for `read_splits`. By default those of the format, or five
            folds that keep all cases of a patient on one side.
        redo: Ids of cases to convert again even if they are there.
        overwrite: Convert all cases again, even if the store holds another conversion. A folder
            that is not a store is never touched.
        progress: See `Progress`.

    Raises:
        DataError: If the source, one of its cases, or the output folder cannot be used.
    """
    request = ConversionRequest(
        source, out, format, resample_mismatched, policy or Policy(), splits, overwrite
    )
    return finish(request, workers=workers, redo=redo, progress=progress)


def finish(
    request: ConversionRequest,
    *,
    workers: int = 1,
    redo: Collection[str] = (),
    progress: Progress | None = None,
) -> Conversion:
    """Convert the cases that are missing, and write the manifest; see `convert`."""
    plan = ConversionPlan.from_request(request)
    if lacks_ct_bounds(plan, overwrite=request.overwrite):
        plan = with_ct_bounds(plan, workers)
    folder = plan.folder(overwrite=request.overwrite)
    with folder.locked():
        finished, pending = _finished_and_pending(plan, plan.dataset.cases, redo)
        # Nobody may train on a store while its cases change.
        if pending:
            folder.withdraw_manifest()
        records, failures = _convert_cases(plan, finished, pending, workers, progress)
        if failures:
            folder.remove_if_without_cases()
            raise _all_in_one(failures, plan)
        _require_all_classes(plan, records)
        if plan.storage.spacing_mm is None:
            spacings_mm = (record.spacing_mm for record in records.values())
            sides_mm = list(zip(*spacings_mm, strict=True))
            if any(max(side_mm) > _MIXED_SPACING * min(side_mm) for side_mm in sides_mm):
                logger.warning(
                    "the voxels of the cases have different sizes: %s mm along D, H, W. A network "
                    "sees only voxels; --spacing median --overwrite gives all cases one size",
                    ", ".join(f"{min(side_mm):.4g} to {max(side_mm):.4g}" for side_mm in sides_mm),
                )
        found = plan.dataset
        manifest = build_manifest(
            found.name, found.channel_names, found.labels, plan.storage, records, splits=plan.splits
        )
        folder.write_manifest(manifest)
    converted = tuple(case.case_id for case in pending)
    return Conversion(plan.out, converted, tuple(finished), manifest.digest)


def prepare(request: ConversionRequest) -> int:
    """Make a store ready for several processes that each convert a share of the cases.

    Returns:
        How many cases there are to convert; 0 if at most the manifest is missing.

    Raises:
        DataError: As `convert`, except for faults of cases, which are not read yet.
    """
    plan = ConversionPlan.from_request(request)
    if lacks_ct_bounds(plan, overwrite=request.overwrite):
        raise DataError(
            "a conversion that clips CT cannot be begun by an array of jobs",
            where="--intensity",
            got="ct-clipped, whose bounds need a first pass over all cases",
            remedy="convert on one node (sbatch slurm/convert.sh SOURCE STORE --intensity "
            "ct-clipped), or take ct: training sees the same, from a larger store",
        )
    folder = plan.folder(overwrite=request.overwrite)
    with folder.locked():
        _, pending = _finished_and_pending(plan, plan.dataset.cases)
        if pending:
            folder.withdraw_manifest()
        return len(pending)


def convert_share(
    request: ConversionRequest,
    share: int,
    shares: int,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> int:
    """Convert one share of a prepared store's cases, while other processes convert the others.

    Args:
        request: The request that the store was prepared for.
        share: Number of the share, from 0.
        shares: How many shares there are.
        workers: Number of processes.
        progress: See `Progress`; it counts the cases of this share only.

    Returns:
        How many cases were converted now.

    Raises:
        DataError: If a case is refused; the other cases of the share are converted.
    """
    plan = ConversionPlan.from_request(request.going_on())
    with plan.folder().joined():
        finished, pending = _finished_and_pending(plan, plan.dataset.cases[share::shares])
        _, failures = _convert_cases(plan, finished, pending, workers, progress)
    if failures:
        raise _all_in_one(failures, plan)
    return len(pending)


def _finished_and_pending(
    plan: ConversionPlan, cases: Sequence[SourceCase], redo: Collection[str] = ()
) -> tuple[dict[str, CaseRecord], list[SourceCase]]:
    """Tell cases that are complete and up to date from those that have to be converted."""
    finished, pending = {}, []
    for case in cases:
        record = None if case.case_id in redo else StoreFolder.read_record(plan.out / case.case_id)
        with suppress(OSError):  # a file is gone: converting the case reports which
            if record is not None and record.source == source_files(case, plan.source):
                finished[case.case_id] = record
                continue
        pending.append(case)
    return finished, pending


def _convert_cases(
    plan: ConversionPlan,
    finished: dict[str, CaseRecord],
    pending: Sequence[SourceCase],
    workers: int,
    progress: Progress | None,
) -> tuple[dict[str, CaseRecord], list[tuple[str, DataError]]]:
    """Convert the pending cases; return the records of all, and the refusals in order of case."""
    report = progress or (lambda done, total: None)
    total = len(finished) + len(pending)
    report(len(finished), total)
    records, failures = dict(finished), []
    for done, (case_id, outcome) in enumerate(
        outcomes(convert_case, plan, pending, workers), len(finished) + 1
    ):
        if isinstance(outcome, DataError):
            failures.append((case_id, outcome))
        else:
            records[case_id] = outcome
        report(done, total)
    # Processes end in any order; the report must not depend on it.
    return records, sorted(failures, key=lambda failure: failure[0])


def _all_in_one(failures: list[tuple[str, DataError]], plan: ConversionPlan) -> DataError:
    """One error that reports all refused cases; the error itself if there is only one."""
    if len(failures) == 1:
        return failures[0][1]
    lines = [
        f"{case_id}: {error.problem} ({error.where}: {error.got})"
        for case_id, error in failures[:_LISTED_FAILURES]
    ]
    if len(failures) > _LISTED_FAILURES:
        lines.append(f"and {len(failures) - _LISTED_FAILURES} more")
    return DataError(
        f"{len(failures)} of {len(plan.dataset.cases)} cases are refused; the others are converted",
        where=plan.source,
        got="\n    " + "\n    ".join(lines),
        remedy="correct them and run the same command again: converted cases are not redone. "
        f"For the first: {failures[0][1].remedy}",
    )


def _require_all_classes(plan: ConversionPlan, records: dict[str, CaseRecord]) -> None:
    found = {value for record in records.values() for value in record.class_voxels}
    missing = {
        name: value for name, value in plan.dataset.labels.items() if value and value not in found
    }
    if missing:
        raise DataError(
            "a declared class occurs in no case",
            where=f"{plan.dataset.declared_in}: labels",
            got=", ".join(f"{name} ({value})" for name, value in missing.items()),
            remedy="remove it from labels (then convert with --overwrite), or add cases that show "
            "it: a network cannot learn a class that it never sees",
        )
