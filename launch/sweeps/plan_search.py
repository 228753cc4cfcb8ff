"""Plans a search: `python -m launch sweep --search optuna --trials 50 ...`.

What cannot work is refused here, on the login node, because the trials choose their settings hours
later, inside their jobs.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from urllib.parse import urlsplit

from launch.sweeps.folds import ALL
from launch.sweeps.grammar import hide_secrets
from launch.sweeps.search_space import SearchPoint, Space
from launch.sweeps.sweep import Search, Sweep, title_of
from launch.sweeps.trial import Trial
from segresmamba.config import config_digest, experiment, load_config
from segresmamba.errors import ConfigError, LaunchError
from segresmamba.redaction import HIDDEN, without_login


class Sampler(Enum):
    """What chooses the trials of a search."""

    OPTUNA = "optuna"


def plan_search(
    overrides: Sequence[str],
    count: int | None,
    name: str | None = None,
    storage: str | None = None,
) -> Sweep:
    """The search that these overrides describe, with the states of an earlier start.

    Nothing is written.

    Args:
        overrides: The space, in Hydra's sweep grammar; see `launch.sweeps.search_space`.
        count: Trials in all.
        name: The sweep's name. Default: a digest of what is searched.
        storage: URL of a database for Optuna's study; None for a file.

    Raises:
        ConfigError: For a wrong setting at a corner of the space.
        LaunchError: If the sweep's folder holds another sweep, the space has fewer points than
            trials, or the storage is no URL, or one with a password.
    """
    overrides = hide_secrets(overrides)
    for override in overrides:
        if override == ALL or override.startswith("run.name="):
            raise LaunchError(
                "each trial of a search is one run, with a name of its own",
                where=override.partition("=")[0],
                got=override,
                remedy="leave it out; --name names the search, and its runs NAME-000, ...",
            )
    if storage is not None:
        _check_storage(storage)
    space = Space.from_overrides(overrides)
    corners = _valid_corners(space)
    if count is None:
        raise LaunchError(
            "a search has no end of its own",
            where="--trials",
            got="nothing",
            remedy="say how many trials, as in --trials 50; more can be added later",
        )
    points = space.points()
    if points is not None and len(points) < count:
        raise LaunchError(
            "the space has fewer points than the search has trials",
            where="--trials",
            got=f"{count}, for {len(points)} points",
            remedy="leave --search and --trials out: a grid tries every point once",
        )
    configs = [load_config(space.overrides(corner)) for corner in corners]
    content = [*(config_digest(config) for config in configs), repr(space.dimensions)]
    title, root = title_of(name, "search", content), configs[0].run.root
    trials = [Trial(n, [], "", str(root / f"{title}-{n:03d}")) for n in range(count)]
    search = Search(list(overrides), storage, title_of(None, "search", content), corners[0])
    sweep = Sweep(root / "sweeps" / title, trials, search)
    sweep.composed = experiment(load_config(sweep.overrides(trials[0], search.sample)))
    sweep.remember()
    return sweep


def _valid_corners(space: Space) -> list[SearchPoint]:
    """One valid point for each corner of the space.

    Raises:
        ConfigError: The first error of a corner without one.
    """
    valid = []
    for points in space.corners():
        errors = []
        for point in points:
            try:
                load_config(space.overrides(point))
            except ConfigError as error:
                errors.append(error)
            else:
                valid.append(point)
                break
        else:
            raise errors[0]
    return valid


def _check_storage(storage: str) -> None:
    """Refuse a URL with a password, which the manifest would show, and a path instead of a URL.

    Raises:
        LaunchError: If it is either.
    """
    parts, hidden = urlsplit(storage), without_login(storage)
    if hidden != storage:
        bare = hidden.replace(f":{HIDDEN}@", "@", 1).partition("?")[0]
        raise LaunchError(
            "a password in the URL would be stored with the sweep",
            where="--storage",
            got=hidden,
            remedy=f"give {bare} and the password in PGPASSWORD or ~/.pgpass",
        )
    if not parts.scheme or "://" not in storage:
        raise LaunchError(
            "this is not the URL of a database",
            where="--storage",
            got=storage,
            remedy="give postgresql://user@host/db, or leave it out: a file in the sweep's folder",
        )
