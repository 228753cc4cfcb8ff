"""Errors that a user can act on, and the one place that sorts every error into three kinds.

    the user's   exit code 2     a mistake in a file, a key or a value; it would come again
    passing      exit code 75    a full disk, a file system or a server that is away: Slurm queues
                                 the job again, as long as `cluster.retries` allows
    ours         exit code 1     a bug in this project; it keeps its traceback

The first two fit on one screen, which names the file or key, the value received and the remedy.
"""

from __future__ import annotations

import errno
import logging
import traceback
from functools import cache
from typing import NamedTuple

from segresmamba.redaction import redacted

USER_CODE, PASSING_CODE, OUR_CODE = 2, 75, 1  # 75 is EX_TEMPFAIL of <sysexits.h>

_PASSING_ERRNOS = frozenset(
    {
        *(
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EFBIG,
            errno.ESTALE,
            errno.EIO,
            errno.EREMOTEIO,
            errno.ETIMEDOUT,
        ),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ENOTCONN, errno.ESHUTDOWN, errno.ECONNABORTED, errno.ECONNREFUSED),
        *(errno.ECONNRESET, errno.EPIPE),
    }
)
# torch.distributed raises these by the names of their classes, gloo a RuntimeError with this text.
_NETWORK_CLASS, _NETWORK_TEXT = "DistError", "gloo/transport"


# A value shows what it is by its beginning. A remedy may be a command, which is no use in parts.
_LONGEST_VALUE, _LONGEST_REMEDY = 600, 1500  # characters of a line
_MOST_LINES = 25


class UserError(ValueError):
    """A mistake in the user's input: in a file, a key or a combination of settings.

    Args:
        problem: What is wrong, in one sentence.
        where: The file or the key that is wrong.
        got: The value received.
        remedy: What to do about it, as exactly as possible (a command, the valid choices).
    """

    def __init__(self, problem: str, *, where: object, got: object, remedy: str) -> None:
        self.problem = problem
        self.where = redacted(str(where))
        self.got = redacted(str(got))
        self.remedy = redacted(remedy)
        super().__init__(f"{problem} [{self.where}: {self.got}] {self.remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """Make it picklable, so that it gets back from a worker process.

        An exception is pickled with positional arguments only, which `__init__` does not take.
        """
        # What it was raised from decides its kind, see `is_passing`.
        cause = self.__cause__ if isinstance(self.__cause__, OSError) else None
        return _rebuild, (type(self), self.problem, self.where, self.got, self.remedy, cause)

    def screen(self) -> str:
        """The error as the command line shows it: long values are cut, so that it fits there."""
        return (
            f"error: {self.problem}\n"
            f"  where:  {self.where}\n"
            f"  got:    {_cut(self.got, _LONGEST_VALUE)}\n"
            f"  remedy: {_cut(self.remedy, _LONGEST_REMEDY)}"
        )


class PassingError(UserError):
    """Not a mistake: something outside failed, and may be well again later."""


class ConfigError(UserError):
    """An unknown key, a value of the wrong type, or settings that contradict each other."""


class DataError(UserError):
    """A source file or a stored case that cannot be used as it is."""


class StoreAwayError(PassingError, DataError):
    """A store whose server gives no answer."""


class DamagedCaseError(DataError):
    """A stored case whose bytes are altered or gone. Other cases of the store may be sound."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete or does not belong to this run."""


class LaunchError(UserError):
    """A job that cannot be submitted or started as asked."""


class BackendMissingError(UserError, NotImplementedError):
    """A backend that was asked for by name is not installed; the remedy is the install command."""


@cache
def warn_once(logger: logging.Logger, message: str, *facts: object) -> None:
    """Log a warning, unless this process has logged the same one already."""
    logger.warning(message, *facts, stacklevel=2)


class Verdict(NamedTuple):
    """What becomes of a command that an error has ended."""

    exit_code: int
    """2, 75 or 1, see the module's docstring."""
    text: str
    """One screen, or the traceback."""


def sort_error(error: BaseException) -> Verdict:
    """Say of which kind an error is, and what to show of it."""
    if isinstance(error, UserError):
        return Verdict(PASSING_CODE if is_passing(error) else USER_CODE, error.screen())
    if not is_passing(error):
        return Verdict(OUR_CODE, _traceback(error))
    if not isinstance(error, OSError):
        return Verdict(PASSING_CODE, _traceback(error))
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    facts = getattr(error, "__notes__", None) or [error.strerror or type(error).__name__]
    passing = PassingError(
        "the disk is full" if full else "a file or a connection failed for a reason that may pass",
        where=error.filename or "see the log",
        got=facts[0],
        remedy=("free space" if full else "see that the file system and the network answer")
        + "; the same command then goes on from the newest checkpoint",
    )
    return Verdict(PASSING_CODE, passing.screen())


def _cut(text: str, longest: int) -> str:
    """The beginning and the end of each line that is too long, and of a text of too many lines."""
    lines = [
        line
        if len(line) <= longest
        else f"{line[: longest // 2]} ... {line[-longest // 4 :]} ({len(line)} characters)"
        for line in text.split("\n")
    ]
    if len(lines) > _MOST_LINES:
        head, tail = lines[: _MOST_LINES - 10], lines[-10:]
        lines = [*head, f"    ... ({len(lines) - _MOST_LINES} more lines)", *tail]
    return "\n".join(lines)


def _traceback(error: BaseException) -> str:
    return redacted("".join(traceback.format_exception(error)).rstrip())


def is_passing(error: BaseException | None) -> bool:
    """Whether an error, or an error that it was raised from, may not come again later."""
    while error is not None:
        names = {kind.__name__ for kind in type(error).__mro__}
        if isinstance(error, PassingError | ConnectionError | TimeoutError):
            return True
        if isinstance(error, OSError) and error.errno in _PASSING_ERRNOS:
            return True
        if isinstance(error, RuntimeError) and (
            _NETWORK_CLASS in names or _NETWORK_TEXT in str(error)
        ):
            return True
        error = error.__cause__
    return False


def _rebuild(
    kind: type[UserError], problem: str, where: str, got: str, remedy: str, cause: OSError | None
) -> UserError:
    error = kind(problem, where=where, got=got, remedy=remedy)
    error.__cause__ = cause
    return error
