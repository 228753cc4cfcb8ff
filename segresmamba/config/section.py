"""The base of every section of the configuration.

It has a file of its own because the sections of `schema`, `networks` and `tracking` all need it.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from segresmamba.errors import ConfigError

Target = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""Code of another package, as package.module:Class."""


class Section(BaseModel):
    """A section: immutable, without unknown keys, and documented by docstrings below its fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,  # the run folder is named after a digest of the settings
        allow_inf_nan=False,  # inf is positive, so a PositiveFloat alone would accept it
        use_attribute_docstrings=True,
    )


def one_line(text: str, where: str) -> str:
    """Refuse a text that would not stay on its line of a batch script.

    After a line break the rest of a value would be a line of its own, which the job runs.

    Args:
        text: The value.
        where: Its key, for the error.

    Raises:
        ConfigError: If it has a line break or another control character.
    """
    # Control characters, and Unicode's own separators of lines and paragraphs.
    if any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text):
        raise ConfigError(
            "a value for Slurm has a line break or another control character",
            where=where,
            got=repr(text),
            remedy="give it as one line of plain text",
        )
    return text
