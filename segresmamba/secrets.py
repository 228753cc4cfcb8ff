"""Keeps passwords and tokens out of every file, log and pickle.

A validated configuration never holds a secret. Where a setting had one, it has a marker, such as
`s3://me:***@host/store` or `***HF_TOKEN***`, and `reveal` gives the secret back where it is used.
The secrets themselves are in an environment variable, which ranks, readers and a requeued Slurm job
inherit. They are also in `secrets.json`, mode 0600, beside a file with markers that is read again.

    python -m segresmamba.secrets FOLDER MARKER     prints the secret, for a job's batch script

This module needs only the standard library, so that reader processes can import it.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from segresmamba.errors import ConfigError
from segresmamba.redaction import HIDDEN, URL, VARIABLE, known_secrets, without_login

FILE = "secrets.json"
# Variables and shell lines that everybody sets and that hold no secret. They stay readable. All
# others are hidden, since any name may stand for a token.
_OPEN_VARIABLE = re.compile(
    r"(NCCL|GLOO|OMP|MKL|KMP|OPENBLAS|NUMBA|NUMEXPR|TORCH|PYTORCH|TORCHINDUCTOR|TRITON|CUDA|CUBLAS"
    r"|HIP|HSA|ROCR|UCX|UCC|FI|MPI|OMPI|PMIX|DS|MALLOC)_\w+|\w*(PATH|DIR|HOME)"
)
_OPEN_LINE = re.compile(
    r"\s*(module|ml|source|\.|conda|mamba|micromamba|spack|ulimit|umask|cd|set|unset) [^=\n]*"
)
_EXPORT = re.compile(r"\s*(?:export\s+)?(\w+)=\S*")


def hide_url(url: str) -> str:
    """A URL with markers for its password, or for tokens in its login or query."""
    hidden = without_login(url)
    return url if hidden == url else _remember(hidden, url)


def hide_urls(text: str) -> str:
    """A text, such as a `key=value` override, with `hide_url` of each URL in it."""
    return URL.sub(lambda found: hide_url(found[0]), text)


def hide_variables(variables: Mapping[str, str | int]) -> dict[str, str | int]:
    """Environment variables with markers for the values of all that may be secret."""
    hidden: dict[str, str | int] = {}
    for name, value in variables.items():
        if not _OPEN_VARIABLE.fullmatch(name):
            hidden[name] = _remember(f"{HIDDEN}{name}{HIDDEN}", str(value))
        else:
            hidden[name] = hide_url(value) if isinstance(value, str) else value
    return hidden


def hide_lines(lines: tuple[str, ...]) -> tuple[str, ...]:
    """Lines of shell with markers in the place of all that may hold a secret."""
    hidden = []
    for number, line in enumerate(lines, 1):
        export = _EXPORT.fullmatch(line)
        is_open = _OPEN_VARIABLE.fullmatch(export[1]) if export else _OPEN_LINE.fullmatch(line)
        marker = f"{HIDDEN}cluster.setup-{number}{HIDDEN}"
        hidden.append(line if is_open and not URL.search(line) else _remember(marker, line))
    return tuple(hidden)


def is_hidden(text: object) -> bool:
    """Whether a value has a marker."""
    return HIDDEN in str(text)


def reveal(hidden: str) -> str:
    """The secret of a marker; a value without one as it is.

    Raises:
        ConfigError: If the secret is not known here.
    """
    known = known_secrets()
    if hidden not in known and is_hidden(hidden):
        raise ConfigError(
            "a secret of this run is not known here",
            where=FILE,
            got=hidden,
            remedy="give the setting again with the secret in it, as in the run's first command; "
            f"a run keeps it in {FILE} in its folder, for its owner alone",
        )
    return known.get(hidden, hidden)


def secrets_in(text: str) -> dict[str, str]:
    """The secrets of all markers in a text, by marker."""
    return {marker: secret for marker, secret in known_secrets().items() if marker in text}


def recall(folder: Path) -> None:
    """Learn the secrets that a folder keeps. What this process knows already wins."""
    try:
        path = folder / FILE
        if path.stat().st_uid not in (os.geteuid(), 0):
            return  # another user's settings are not ours to obey
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return  # `reveal` says what is missing, where it is needed
    if isinstance(kept, dict):
        strings = {marker: str(secret) for marker, secret in kept.items()}
        os.environ[VARIABLE] = json.dumps(strings | known_secrets())


def _remember(marker: str, secret: str) -> str:
    if marker != secret:  # else it was read back
        os.environ[VARIABLE] = json.dumps(known_secrets() | {marker: secret})
    return marker


def main() -> None:
    """Print the secret of a marker that a folder keeps."""
    recall(Path(sys.argv[1]))
    try:
        print(reveal(sys.argv[2]))
    except ConfigError as error:
        sys.stderr.write(error.screen() + "\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
