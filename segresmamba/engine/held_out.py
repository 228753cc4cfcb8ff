"""Scores the held-out cases for a validation, and keeps what it has when it is asked to stop.

A validation may take longer than a job may run. If each job began it anew, the run would stay at
its step for ever. So what was scored is kept, and the next job goes on with the other cases:

    checkpoints/step-00000100/scored.json
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from segresmamba.config import Config, config_digest
from segresmamba.engine.bad_cases import BadCases
from segresmamba.engine.distributed import from_main, gather, highest
from segresmamba.engine.stop import stop_requested
from segresmamba.engine.watchdog import Watchdog
from segresmamba.errors import DamagedCaseError
from segresmamba.evaluation.score_cases import CaseResult, evaluate_cases
from segresmamba.storage.atomic import write_text
from segresmamba.storage.patience import patience
from segresmamba.task.ranks import Ranks
from segresmamba.task.task import Task

logger = logging.getLogger(__name__)


class _AskedToStopError(Exception):
    """This rank was asked to stop in the middle of a case."""


@dataclass(frozen=True)
class Scored:
    """The cases that a validation has scored."""

    settings: tuple[str, float]
    """Digest of the experiment, and overlap of the windows: with others the scores differ."""
    results: list[CaseResult]
    """Their scores."""
    seconds: float
    """How long that took."""


_SCORED = TypeAdapter(Scored)


def score_held_out(
    task: Task,
    weights: dict[str, Tensor],
    step: int,
    path: Path,
    ranks: Ranks,
    watchdog: Watchdog,
    bad_cases: BadCases,
) -> Scored | None:
    """Score the held-out cases on whole volumes, one for each rank at a time (collective).

    Args:
        task: What is trained.
        weights: The weights to score, in full.
        step: Their step, for the log.
        path: Where the scores are kept if some rank is asked to stop.
        ranks: This process.
        watchdog: Gets a beat after each window.
        bad_cases: Gets the cases that are damaged; they have no score.

    Returns:
        The scores; None if some rank was asked to stop. What was scored by then is kept.
    """
    started_s = time.monotonic()
    network = task.network()
    network.load_state_dict(weights)
    network.to(ranks.device)

    def after_window(*_: object) -> None:
        # A large volume may take longer than Slurm waits after its warning.
        watchdog.beat()
        if stop_requested():
            raise _AskedToStopError

    network.register_forward_hook(after_window)
    before = from_main(read_scored(path, task.config))
    results = list(before.results) if ranks.is_main else []
    known = {result.case_id for result in before.results}
    held_out = task.split["val"]
    cases = [case for case in held_out if case not in known]
    if ranks.is_main:
        others = f" ({len(known)} others are scored)" if known else ""
        logger.info("step %d: validating %d case(s)%s", step, len(cases), others)
    must_stop = False
    # After the last cases the ranks look once more, whether one has left its case unfinished.
    for first in range(0, len(cases) + ranks.world_size, ranks.world_size):
        watchdog.beat()
        must_stop |= first < len(cases) and stop_requested()
        if highest(int(must_stop), ranks.device):
            break
        mine = cases[first + ranks.rank : first + ranks.rank + 1]
        try:
            results += evaluate_cases(network, task.dataset, mine, task.config, ranks.device)
        except DamagedCaseError as error:
            bad_cases.add({mine[0]: f"{error.where}: {error.got}"})
        except _AskedToStopError:
            must_stop = True
    everywhere = [case for part in gather(results, ranks) for case in part]
    seconds = before.seconds + time.monotonic() - started_s
    scored = Scored(before.settings, everywhere, seconds)
    if not highest(int(must_stop), ranks.device):
        return scored
    if ranks.is_main:
        write_scored(path, scored)
    hint = ", none in this start: if a time limit ends it here again, raise cluster.time_min"
    logger.warning(
        "asked to stop: step %d will be validated later; %d of %d cases are scored%s",
        *(step, len(everywhere), len(held_out), hint if len(everywhere) == len(known) else ""),
    )
    return None


def read_scored(path: Path, config: Config) -> Scored:
    """What was scored with these settings; nothing, if there is no sound file."""
    nothing = Scored(_settings(config), [], 0.0)
    try:
        found = _SCORED.validate_json(path.read_bytes())
    except FileNotFoundError:
        return nothing
    except (OSError, ValidationError) as error:
        logger.warning("all cases are scored again, because %s cannot be read: %s", path, error)
        return nothing
    return found if found.settings == nothing.settings else nothing


def write_scored(path: Path, scored: Scored) -> None:
    """Keep what was scored, if that can be done at once: the job is about to end."""
    try:
        with patience(0.0):
            write_text(path, _SCORED.dump_json(scored).decode())
    except OSError as error:
        logger.warning(
            "all cases will be scored again, because %s was not written: %s", path, error
        )


def _settings(config: Config) -> tuple[str, float]:
    return config_digest(config), config.validation.overlap
