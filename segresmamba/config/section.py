"""The base of every section of the configuration.

It has a file of its own because the sections of `schema`, `networks` and `tracking` all need it.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A section: immutable, without unknown keys, and documented by docstrings below its fields."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,  # the run folder is named after a digest of the settings
        allow_inf_nan=False,  # inf is positive, so a PositiveFloat alone would accept it
        use_attribute_docstrings=True,
    )
