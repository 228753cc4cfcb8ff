"""Errors that a user can act on.

Each names the file or key, the value received and the remedy, fits on one screen, and ends the
command with exit code 2. Any other exception that ends a command is a bug in this project and
keeps its traceback.
"""

from __future__ import annotations

from segresmamba.redaction import redacted


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
        return _rebuild, (type(self), self.problem, self.where, self.got, self.remedy)

    def screen(self) -> str:
        """The error as the command line shows it."""
        return (
            f"error: {self.problem}\n"
            f"  where:  {self.where}\n"
            f"  got:    {self.got}\n"
            f"  remedy: {self.remedy}"
        )


class ConfigError(UserError):
    """An unknown key, a value of the wrong type, or settings that contradict each other."""


class DataError(UserError):
    """A source file or a stored case that cannot be used as it is."""


class DamagedCaseError(DataError):
    """A stored case whose bytes are altered or gone. Other cases of the store may be sound."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete or does not belong to this run."""


class LaunchError(UserError):
    """A job that cannot be submitted or started as asked."""


class BackendMissingError(UserError, NotImplementedError):
    """A backend that was asked for by name is not installed; the remedy is the install command."""


def _rebuild(kind: type[UserError], problem: str, where: str, got: str, remedy: str) -> UserError:
    return kind(problem, where=where, got=got, remedy=remedy)
