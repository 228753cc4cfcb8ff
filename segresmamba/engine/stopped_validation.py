"""What a validation had scored when it was stopped, for the job that goes on with it.

A validation may take longer than a job may run. If each job began it anew, the run would stay at
its step for ever.

    checkpoints/step-00000100/scored.json
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from segresmamba.config import Config, config_digest
from segresmamba.evaluation.score_cases import CaseResult
from segresmamba.storage.atomic import write_text

logger = logging.getLogger(__name__)


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
    """Keep what was scored.

    Raises:
        OSError: If it cannot be written.
    """
    write_text(path, _SCORED.dump_json(scored).decode())


def _settings(config: Config) -> tuple[str, float]:
    return config_digest(config), config.validation.overlap
