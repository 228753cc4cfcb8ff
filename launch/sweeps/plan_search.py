"""Planning a search: `python -m launch sweep --search optuna --trials 50 ...`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from urllib.parse import urlsplit

from launch.sweeps.folds import ALL
from launch.sweeps.search_space import SearchPoint, Space
from launch.sweeps.sweep import Search, Sweep, title_of
from launch.sweeps.trial import Trial
from segresmamba.config import config_digest, load_config
from segresmamba.errors import ConfigError, LaunchError


class Sampler(Enum):
    """What chooses the trials of a search."""

    OPTUNA = "optuna"


def plan_search(
    words: Sequence[str], count: int | None, name: str | None = None, storage: str | None = None
) -> Sweep:
    """The search that these words describe, as far as it has come; nothing is written.

    Args:
        words: Its space, in Hydra's sweep grammar; see `launch.sweeps.search_space`.
        count: Trials in all.
        name: Of the sweep. Default: a digest of what is searched.
        storage: URL of a database for Optuna's study; None for a file.

    Raises:
        ConfigError: For a setting that is none, at a corner of the space.
        LaunchError: If the folder of the sweep holds another one, the space has fewer points than
            there are to be trials, or the storage is no URL that may be written down.
    """
    _refuse_names(words)
    if storage is not None:
        _refuse_storage(storage)
    space = Space.from_overrides(words)
    corners = [_first_valid(space, points) for points in space.corners()]
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
            "the space has fewer points than there are to be trials",
            where="--trials",
            got=f"{count}, for {len(points)} points",
            remedy="leave --search and --trials out: a grid tries every point once",
        )
    configs = [load_config(space.words(corner)) for corner in corners]
    content = [*(config_digest(config) for config in configs), repr(space.dimensions)]
    title, root = title_of(name, "search", content), configs[0].run.root
    trials = [Trial(n, [], "", str(root / f"{title}-{n:03d}")) for n in range(count)]
    search = Search(list(words), storage, title_of(None, "search", content), corners[0])
    sweep = Sweep(root / "sweeps" / title, trials, search)
    sweep.remember()
    return sweep


def _first_valid(space: Space, points: Sequence[SearchPoint]) -> SearchPoint:
    """The first of these points whose settings are some; the first one's error if there is none."""
    errors = []
    for point in points:
        try:
            load_config(space.words(point))
        except ConfigError as error:
            errors.append(error)
        else:
            return point
    raise errors[0]


def _refuse_names(words: Sequence[str]) -> None:
    for word in words:
        if word == ALL or word.startswith("run.name="):
            raise LaunchError(
                "each trial of a search is one run, with a name of its own",
                where=word.partition("=")[0],
                got=word,
                remedy="leave it out; --name names the search, and its runs NAME-000, ...",
            )


def _refuse_storage(storage: str) -> None:
    """Keep a password out of the manifest, and a file out of the place of a database.

    Raises:
        LaunchError: If the URL has one, or is none.
    """
    parts = urlsplit(storage)
    if parts.password is not None:
        bare = storage.replace(f":{parts.password}@", "@", 1)
        raise LaunchError(
            "a password in the URL would be stored with the sweep",
            where="--storage",
            got=bare.replace("@", ":...@", 1),
            remedy=f"give {bare} and the password in PGPASSWORD or ~/.pgpass",
        )
    if not parts.scheme or "://" not in storage:
        raise LaunchError(
            "this is no URL of a database",
            where="--storage",
            got=storage,
            remedy="give postgresql://user@host/db, or leave it out: a file in the sweep's folder",
        )
