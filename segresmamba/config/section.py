"""The base of every section of the configuration.

The larger sections have files of their own, and `schema` puts all of them together.
"""

from __future__ import annotations

import unicodedata
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from segresmamba.errors import ConfigError

Target = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""Code of another package, as package.module:Class."""
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
"""A share, from nothing to all."""


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


def refuse_stray_keywords(kwargs: dict[str, Any], target: str | None, section: str) -> None:
    """Refuse the keywords of a class that is not named.

    Args:
        kwargs: The keywords.
        target: The class.
        section: The section of the configuration that has both.

    Raises:
        ConfigError: If there are keywords and no class.
    """
    if kwargs and target is None:
        raise ConfigError(
            "keywords are given for no class",
            where=f"{section}.kwargs",
            got=kwargs,
            remedy=f"give {section}.target=package.module:Class too",
        )
