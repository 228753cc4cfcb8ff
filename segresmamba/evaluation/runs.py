"""Score a trained run's held-out cases."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from segresmamba.config import read_config
from segresmamba.errors import ConfigError, DataError, is_passing
from segresmamba.evaluation.decide_rules import Decision, KeptCase, decide_rules
from segresmamba.evaluation.evaluation import Evaluation
from segresmamba.evaluation.folders import (
    brief,
    nothing_scored,
    require_known_tolerances,
)
from segresmamba.evaluation.measures import Scoring, measure
from segresmamba.evaluation.pictures import Picture, draw_chosen
from segresmamba.evaluation.result_files import results_table, write_result_files
from segresmamba.evaluation.results import Results
from segresmamba.evaluation.score_cases import PredictedCase, predict_case, sliding_window
from segresmamba.inference.label_map import cannot_write
from segresmamba.inference.postprocessing import Postprocessing, write_postprocessing
from segresmamba.inference.sliding_window import SlidingWindow
from segresmamba.inference.trained import require_same_preprocessing
from segresmamba.storage.run_folder import RunFolder
from segresmamba.task.ranks import device_for
from segresmamba.task.task import Task
from segresmamba.task.weights import TrainedNetwork, load_network
from segresmamba.tracking import Status, open_tracker, read_journal

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]


def evaluate_run(
    run: Path,
    scoring: Scoring | None = None,
    *,
    decide_postprocessing: bool = False,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> Evaluation:
    """Score a run's best weights on its held-out fold and put the results into the run.

    Args:
        run: The run's folder.
        scoring: What is computed. None: the usual metrics.
        decide_postprocessing: Also decide which components predictions keep, and store that beside
            the weights. The scores are always those without post-processing.
        workers: Classes of a case that are scored at the same time.
        progress: Called with the number of finished cases and that of all cases.

    Raises:
        UserError: If the folder holds no finished validation, the store is not there, the run is
            training at this moment, all cases have trained it, or none can be scored.
    """
    folder = RunFolder(run)
    held_out = HeldOut.of_runs([folder])
    wanted = scoring or Scoring()
    require_known_tolerances(wanted, held_out.trained.classes.members)
    # How training ended, which an evaluation does not change.
    statuses: list[Status] = [
        record.body["status"]
        for record in read_journal(folder.journal)
        if record.kind == "status" and record.body["status"] != "running"
    ]
    config, facts = held_out.task.config, held_out.trained.facts
    tracker = open_tracker(run, config.tracking, root=config.run.root, run_name=run.name)
    try:
        with TemporaryDirectory() as temporary:
            kept = KeptPredictions(Path(temporary), originals=decide_postprocessing)
            results = held_out.score(wanted, kept, workers, progress)
            files = write_result_files(folder.results, results, {"checkpoint": str(folder.best)})
            load = partial(held_out.picture, kept)
            draw_chosen(folder.overlays, results, config.validation.overlays, load)
            if decide_postprocessing:
                decision = decide_rules(kept.cases(results.cases), results.members)
                files += (_store(folder, decision, facts.step, sorted(results.cases)),)
        tracker.metrics(
            {f"evaluation/{key}": value for key, value in results.flat().items()}, step=facts.step
        )
        for file in files:
            tracker.artifact(file)
        for picture in sorted(folder.overlays.glob("*.png")):
            tracker.artifact(picture, "overlays")
    except OSError as error:
        raise cannot_write(run, error) from error
    finally:
        tracker.close(statuses[-1] if statuses else "failed")
    notes = decision.reasons if decide_postprocessing else ()
    return Evaluation(
        results_table(results), files, folder.overlays, results.failed, notes, tracker.ui_hint()
    )


@dataclass(frozen=True)
class KeptPredictions:
    """The predictions of an evaluation, on the disk until it ends."""

    folder: Path
    originals: bool
    """Whether the volumes in original geometry are kept too."""

    def keep(self, case_id: str, one: PredictedCase) -> None:
        """Keep the prediction of a case.

        Raises:
            DataError: If it cannot be written, as where temporary files have no room.
        """
        try:
            np.savez_compressed(self.folder / f"{case_id}.stored.npz", one.prediction_DHW)
            if self.originals:
                KeptCase.write(
                    self._original(case_id), one.predicted_XYZ, one.expected_XYZ, one.spacing_XYZ_mm
                )
        except OSError as error:
            raise DataError(
                "a prediction cannot be kept until it is scored",
                where=self.folder,
                got=error.strerror,
                remedy="free space there, or export TMPDIR=FOLDER, where temporary files then lie",
            ) from error

    def stored(self, case_id: str) -> np.ndarray[Any, Any]:
        """The prediction (D, H, W) on the grid of the store."""
        with np.load(self.folder / f"{case_id}.stored.npz") as content:
            prediction_DHW: np.ndarray[Any, Any] = content["arr_0"]
            return prediction_DHW

    def cases(self, case_ids: Iterable[str]) -> list[KeptCase]:
        """The cases in original geometry."""
        return [KeptCase(self._original(case_id)) for case_id in case_ids]

    def _original(self, case_id: str) -> Path:
        return self.folder / f"{case_id}.original.npz"


@dataclass(frozen=True)
class HeldOut:
    """The best networks of runs, and the cases that none of them was trained on."""

    task: Task
    """The task of the first run."""
    trained: TrainedNetwork
    """The network of the first run."""
    sliding: SlidingWindow
    """The networks of all runs, whose outputs are averaged."""

    @classmethod
    def of_runs(cls, folders: Sequence[RunFolder]) -> HeldOut:
        """Open runs of one store that held the same cases out.

        Raises:
            UserError: If one has no best weights, its store is not there or was converted anew
                under another policy, or they held nothing or other cases out.
        """
        device = device_for(read_config(folders[0].config).train.device)
        tasks, networks = list[Task](), list[TrainedNetwork]()
        for folder in folders:
            config = read_config(folder.config)
            if config.train.fold is None:
                raise ConfigError(
                    "nothing was held out: all cases have trained the network",
                    where=f"{folder.config}: train.fold",
                    got="none",
                    remedy="segment other cases with `segresmamba predict`, or train with "
                    "train.fold=0",
                )
            task, trained = Task.from_config(config), load_network(folder.best, config)
            require_same_preprocessing(trained.facts, task.dataset)
            if tasks and set(task.split["val"]) != set(tasks[0].split["val"]):
                raise DataError(
                    "these runs held different cases out: each has seen cases of the other",
                    where=f"{folder.config}: train.fold",
                    got=f"{config.train.fold}, in {folders[0].path}: {tasks[0].config.train.fold}",
                    remedy="evaluate them one by one, or train them on the same fold of one store",
                )
            tasks.append(task)
            networks.append(trained)
        pairs = [
            (trained.network.to(device), task.config)
            for task, trained in zip(tasks, networks, strict=True)
        ]
        return cls(tasks[0], networks[0], sliding_window(pairs, device))

    def score(
        self, scoring: Scoring, kept: KeptPredictions | None, workers: int, progress: Progress
    ) -> Results:
        """Predict and score the cases. One that cannot be read does not end the others.

        Args:
            scoring: What is computed.
            kept: What keeps the predictions, if anything does.
            workers: Classes of a case that are scored at the same time.
            progress: Called with the number of finished cases and that of all cases.

        Raises:
            DataError: If no case can be scored.
        """
        case_ids, members = self.task.split["val"], self.trained.classes.members
        scores: dict[str, Future[dict[str, dict[str, float]]]] = {}
        failed: dict[str, str] = {}
        with ThreadPoolExecutor(1) as scorer:
            for done, case_id in enumerate(case_ids):
                progress(done, len(case_ids))
                try:
                    one = predict_case(
                        self.sliding, self.trained.classes, self.task.dataset, case_id
                    )
                except DataError as error:
                    if is_passing(error):
                        raise
                    failed[case_id] = brief(error)
                    logger.warning("case %s is left out: %s", case_id, failed[case_id])
                    continue
                if kept is not None:
                    kept.keep(case_id, one)
                wait(scores.values())  # a case is scored while the next one is predicted
                volumes = one.predicted_XYZ, one.expected_XYZ
                scores[case_id] = scorer.submit(
                    measure, *volumes, members, one.spacing_XYZ_mm, scoring, threads=workers
                )
        progress(len(case_ids), len(case_ids))
        cases = {case_id: score.result() for case_id, score in scores.items()}
        if not cases:
            raise nothing_scored(self.task.dataset.where, failed)
        return Results(scoring, members, cases, failed)

    def picture(self, kept: KeptPredictions, case_id: str) -> Picture:
        """The volumes of a case that was scored."""
        case = self.task.dataset[case_id]
        image_CDHW, reference_DHW = case.read()
        # As in the scores: nobody knows what is where the annotation says nothing.
        known = reference_DHW != self.task.dataset.manifest.storage.ignore_value
        reference_DHW, found_DHW = known * reference_DHW, known * kept.stored(case_id)
        return Picture(image_CDHW[0], reference_DHW, found_DHW, case.spacing_mm)


def _store(folder: RunFolder, decision: Decision, step: int, case_ids: Sequence[str]) -> Path:
    record = Postprocessing(
        step=step, rules=decision.rules, cases=tuple(case_ids), reasons=decision.reasons
    )
    return write_postprocessing(folder.best, record)
