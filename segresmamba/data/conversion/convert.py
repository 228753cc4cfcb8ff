"""Raw dataset -> store, case by case, in parallel, and where it stopped before.

A case is done when its folder is there under its own name: it is written under a hidden name and
renamed. The manifest comes last, so a store without it is one whose conversion has not ended.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from segresmamba.data.conversion.case import convert_case, source_files
from segresmamba.data.conversion.plan import ConversionPlan, ConversionRequest
from segresmamba.data.conversion.store_folder import StoreFolder
from segresmamba.data.formats.registry import AUTO
from segresmamba.data.formats.source import SourceCase
from segresmamba.data.preprocessing import Policy
from segresmamba.data.store.manifest import CaseRecord, build_manifest
from segresmamba.data.store.splits import Split
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
    policy: Policy | None = None,
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
        policy: Voxel size, crop, intensities and dtype of the store; by default as in the files. A
            store is made under one policy: another is refused unless `overwrite`.
        splits: The user's own folds, or a file of them as `read_splits` takes it; else those of
            the format, else five with all cases of a patient on one side.
        redo: Ids of cases to convert anew, whatever is there.
        overwrite: Convert all cases anew, whatever the store holds of another conversion. A folder
            that is no store is never touched.
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
    """Convert what is not there yet, and write the manifest; see `convert`."""
    plan = ConversionPlan.from_request(request)
    folder = plan.folder(overwrite=request.overwrite)
    with folder.locked():
        work = _Work(plan, plan.dataset.cases, redo)
        if work.todo:
            folder.withdraw_manifest()
        records, failures = work.do(workers, progress)
        if failures:
            folder.remove_if_without_cases()
            raise _all_in_one(failures, plan)
        _require_all_classes(plan, records)
        dataset = plan.dataset
        manifest = build_manifest(
            dataset.name,
            dataset.channel_names,
            dataset.labels,
            plan.storage,
            records,
            splits=plan.splits,
        )
        folder.write_manifest(manifest)
    todo = tuple(case.case_id for case in work.todo)
    return Conversion(plan.out, todo, tuple(work.kept), manifest.digest)


def prepare(request: ConversionRequest) -> int:
    """Make a store ready for processes that convert a share each.

    Returns:
        How many cases there are to convert; none if only the manifest may be missing.

    Raises:
        DataError: As `convert`, but for what is wrong with a case.
    """
    plan = ConversionPlan.from_request(request)
    folder = plan.folder(overwrite=request.overwrite)
    with folder.locked():
        work = _Work(plan, plan.dataset.cases)
        if work.todo:
            folder.withdraw_manifest()
        return len(work.todo)


def convert_share(
    request: ConversionRequest,
    share: int,
    shares: int,
    *,
    workers: int = 1,
    progress: Progress | None = None,
) -> int:
    """Convert one of several shares of a prepared store's cases, beside others who do the same.

    Args:
        request: That the store was prepared for.
        share: Which of them, from 0.
        shares: How many there are.
        workers: Processes.
        progress: Told of this share alone.

    Returns:
        How many cases were converted now.

    Raises:
        DataError: If a case is refused; the others of the share are converted.
    """
    plan = ConversionPlan.from_request(request.going_on())
    with plan.folder().joined():
        work = _Work(plan, plan.dataset.cases[share::shares])
        _, failures = work.do(workers, progress)
    if failures:
        raise _all_in_one(failures, plan)
    return len(work.todo)


class _Work:
    """Some cases of a conversion: those that are there already, and those still to do."""

    def __init__(
        self, plan: ConversionPlan, cases: Sequence[SourceCase], redo: Collection[str] = ()
    ) -> None:
        self.plan = plan
        finished = _finished(plan, cases)
        self.kept = {case_id: finished[case_id] for case_id in finished if case_id not in redo}
        self.todo = [case for case in cases if case.case_id not in self.kept]

    def do(
        self, workers: int, progress: Progress | None
    ) -> tuple[dict[str, CaseRecord], list[tuple[str, DataError]]]:
        """Convert what is to do: the records of all, and the refusals, by case."""
        report = progress or (lambda done, total: None)
        done, total = len(self.kept), len(self.kept) + len(self.todo)
        report(done, total)
        records, failures = dict(self.kept), []
        job = partial(_attempt, self.plan)
        for number, (case_id, outcome) in enumerate(_run(job, self.todo, workers), start=1):
            if isinstance(outcome, DataError):
                failures.append((case_id, outcome))
            else:
                records[case_id] = outcome
            report(done + number, total)
        return records, sorted(failures, key=lambda failure: failure[0])


def _finished(plan: ConversionPlan, cases: Sequence[SourceCase]) -> dict[str, CaseRecord]:
    """Cases that need no work: their folder is there, and their files look as they did."""
    finished = {}
    for case in cases:
        record = StoreFolder.read_record(plan.out / case.case_id)
        if record is None:
            continue
        try:
            unchanged = record.source == source_files(case, plan.source)
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


def _attempt(plan: ConversionPlan, case: SourceCase) -> CaseRecord | DataError:
    try:
        return convert_case(plan, case)
    except DataError as error:
        return error


def _all_in_one(failures: list[tuple[str, DataError]], plan: ConversionPlan) -> DataError:
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
            "it: nothing could be learnt of it",
        )
