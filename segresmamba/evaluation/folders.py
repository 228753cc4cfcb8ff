"""Score a folder of predictions against a folder of labels; no run is needed."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from segresmamba.data.formats.source import VOLUME_ENDINGS
from segresmamba.errors import ConfigError, DataError, is_passing
from segresmamba.evaluation.evaluation import Evaluation
from segresmamba.evaluation.file_pairs import Pair, pair_files
from segresmamba.evaluation.measures import Scoring, measure
from segresmamba.evaluation.pictures import Picture, draw_chosen
from segresmamba.evaluation.result_files import results_table, write_result_files
from segresmamba.evaluation.results import Results
from segresmamba.evaluation.score_pair import Scored, score_pair
from segresmamba.evaluation.structures import Structures, read_pair, structures_from_json
from segresmamba.storage.foreign_folder import refuse_foreign_folder
from segresmamba.storage.processes import outcomes

logger = logging.getLogger(__name__)

_WORST = 3  # cases that are drawn, besides the median one


def evaluate_folders(
    predictions: Path,
    labels: Path,
    out: Path,
    *,
    structures: Structures | None = None,
    scoring: Scoring,
    images: Path | None = None,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:
    """Score every label file by the prediction of the same name.

    Args:
        predictions: Folder of label maps; their format may be another than that of the labels.
        labels: Folder of the references. One without a prediction counts as a case that failed.
        out: Folder for the results; created.
        structures: The classes. None looks for a dataset.json that declares them; without one, each
            value that occurs is a class.
        scoring: What is computed.
        images: Folder of the images, for pictures of the worst cases and of the median one.
        workers: Number of processes.
        progress: Called with the number of finished cases and that of all cases.

    Raises:
        UserError: If nothing can be scored, or a setting names a class that there is not.
    """
    refuse_foreign_folder(out, "--out")
    classes = structures or _declared(predictions, labels)
    require_known_tolerances(scoring, classes.members)
    pairs, failed = pair_files(predictions, labels)
    scored: dict[str, Scored] = {}
    killed = DataError(
        "a scoring process was killed",
        where="--workers",
        got=workers,
        remedy="most likely memory ran out: run again with fewer workers",
    )
    threads = workers // min(workers, len(pairs))
    calls = {pair.case_id: partial(score_pair, pair, classes, scoring, threads) for pair in pairs}
    for done, (case_id, outcome) in enumerate(outcomes(calls, workers, killed), start=1):
        if isinstance(outcome, Scored):
            scored[case_id] = outcome
        elif is_passing(outcome):
            raise outcome
        else:
            failed[case_id] = brief(outcome)
        progress(done, len(pairs))
    if not scored:
        raise nothing_scored(predictions, failed)
    results = _joined(scored, failed, scoring, classes)
    try:
        out.mkdir(parents=True, exist_ok=True)
        about = {"predictions": str(predictions), "labels": str(labels)}
        files = write_result_files(out / "results.json", results, about)
        if images is not None:
            by_id = {pair.case_id: pair for pair in pairs}
            known = Structures(results.members, classes.ignore_value)
            draw_chosen(
                out / "overlays", results, _WORST, lambda one: _picture(by_id[one], images, known)
            )
    except OSError as error:
        from segresmamba.inference.label_map import cannot_write  # torch

        raise cannot_write(out, error) from error
    overlays = None if images is None else out / "overlays"
    return Evaluation(results_table(results), files, overlays, results.failed)


def brief(error: DataError) -> str:
    """An error of one case, on one line of a list."""
    return f"{error.problem} [{error.where}: {error.got}]"


def nothing_scored(where: object, failed: Mapping[str, str]) -> DataError:
    """The error for an evaluation in which every case failed."""
    case_id, why = next(iter(failed.items()))
    return DataError(
        f"no case could be scored; {len(failed)} failed",
        where=where,
        got=f"{case_id}: {why}",
        remedy="correct what is wrong with this one first; the others are often like it",
    )


def require_known_tolerances(scoring: Scoring, members: Mapping[str, Sequence[int]] | None) -> None:
    """Refuse a tolerance for a class that there is not.

    Args:
        scoring: The tolerances.
        members: The classes. None if each value that occurs will be one, named "label 1" and so on.

    Raises:
        ConfigError: Names it, and the classes.
    """
    unknown = sorted(set(scoring.tolerance_mm) - set(members or ()))
    choices = f"choose among {', '.join(members or ())}"
    if members is None:
        unknown = [name for name in unknown if not re.fullmatch(r"label -?\d+", name)]
        choices = "name the classes, as in --labels NAME=1, or write 'label 1=TOLERANCE'"
    if unknown:
        raise ConfigError(
            "there is no such class",
            where="--tolerance-mm",
            got=", ".join(unknown),
            remedy=choices,
        )


def _declared(predictions: Path, labels: Path) -> Structures:
    """The classes that a dataset.json near the labels declares, else those that will be found."""
    for folder in (labels, labels.parent, predictions):
        path = folder / "dataset.json"
        if path.is_file():
            logger.info("classes: as %s declares them", path)
            return structures_from_json(path)
    logger.info("classes: every label value that occurs; to name them: --labels name=value,...")
    return Structures(None)


def _joined(
    scored: Mapping[str, Scored],
    failed: Mapping[str, str],
    scoring: Scoring,
    structures: Structures,
) -> Results:
    """The results of all cases, sorted by name; each case gets every class."""
    members = structures.members
    if members is None:
        every = {name: values for one in scored.values() for name, values in one.members.items()}
        members = dict(sorted(every.items(), key=lambda item: item[1]))
    require_known_tolerances(scoring, members)
    # A class that occurs in other cases only is in neither volume of this one.
    nothing = np.zeros((1, 1, 1), np.uint8)
    absent = measure(nothing, nothing, members, (1.0, 1.0, 1.0), scoring)
    cases = {
        case_id: {name: scored[case_id].values.get(name, absent[name]) for name in members}
        for case_id in sorted(scored)
    }
    return Results(scoring, members, cases, dict(sorted(failed.items())))


def _picture(pair: Pair, images: Path, structures: Structures) -> Picture | None:
    """The volumes of a case, with the first of its images."""
    from segresmamba.data.volumes.volume import read_volume

    paths = (
        images / f"{pair.case_id}{channel}{ending}"
        for channel in ("_0000", "")
        for ending in VOLUME_ENDINGS
    )
    path = next((one for one in paths if one.exists()), None)
    if path is None:
        logger.warning("%s has no image %s_0000: it is not drawn", images, pair.case_id)
        return None
    try:
        image = read_volume([path])
    except DataError as error:
        logger.warning("%s: it is not drawn", brief(error))
        return None
    maps = read_pair(pair.prediction, pair.reference, structures)
    if image.image_CDHW.shape[1:] != maps.reference_DHW.shape:
        logger.warning("%s has another grid than its label: it is not drawn", path)
        return None
    return Picture(image.image_CDHW[0], maps.reference_DHW, maps.prediction_DHW, maps.spacing_mm)
