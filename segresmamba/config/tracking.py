"""Settings of tracking, and what becomes of a password in a tracking URI.

A configuration is written to config.yaml, pickled for Slurm and sent to MLflow as parameters, so it
never holds a password: the one in `tracking.uri` goes into the environment, which the ranks, the
uploader and a requeued Slurm job inherit.
"""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import parse_qs, unquote, urlsplit, urlunsplit

from pydantic import Field, PositiveFloat, field_validator

from segresmamba.config.section import Section
from segresmamba.errors import ConfigError

PASSWORD_VARIABLE = "SEGRESMAMBA_TRACKING_PASSWORD"


class TrackingConfig(Section):
    """Where metrics go besides the run folder's journal, and what is measured beside training."""

    uri: str | None = None
    """MLflow tracking URI; unset takes the server of slurm/mlflow.sh, or mlflow.db in run.root. A
    password in it is kept in the environment (SEGRESMAMBA_TRACKING_PASSWORD) and never written."""
    experiment: str = "segresmamba"
    """MLflow experiment."""
    group: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    """Sweep or cross-validation that the run belongs to: MLflow shows the runs of a group as
    children of one run of that name."""
    enabled: bool = True
    """Send the journal to MLflow."""
    log_model: bool = True
    """Send the best weights to MLflow as a model, when the run finishes."""
    register_model: str | None = Field(default=None, min_length=1)
    """Name in MLflow's model registry under which the best model is registered; unset does not."""
    system_metrics: bool = True
    """Sample GPUs, processors, memory, disk and network of every node every 10 s."""
    emissions: bool = True
    """Measure energy and CO2e with CodeCarbon (offline)."""
    country: str = Field(default="USA", pattern=r"^[A-Z]{3}$")
    """ISO code of the country whose grid intensity converts energy to CO2e."""
    grid_g_per_kwh: PositiveFloat | None = None
    """Carbon intensity of the grid in g CO2e/kWh, from your supplier; unset takes the country's."""
    logs: Literal["auto", "text", "json"] = "auto"
    """auto: a progress bar on a terminal, else one line a minute; text: the latter always; json:
    one JSON object a line."""

    @field_validator("uri")
    @classmethod
    def _without_password(cls, uri: str | None) -> str | None:
        return uri and _keep_password(uri)


def with_password(uri: str) -> str:
    """A tracking URI of a configuration with the password that the environment has for it."""
    parts = urlsplit(uri)
    password = os.environ.get(PASSWORD_VARIABLE)
    if not (parts.username and password):
        return uri
    # The URI's own quoting: the variable holds the password as it stood in the URI.
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("@", f":{password}@", 1)))


def server_login(uri: str) -> tuple[str, str | None, str | None]:
    """The URI of a server without its user, the user, and the password of the environment."""
    parts = urlsplit(uri)
    password = os.environ.get(PASSWORD_VARIABLE)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    user = parts.username and unquote(parts.username)
    return bare, user, password and unquote(password)


def _keep_password(uri: str) -> str:
    """Move the password of a URI into the environment."""
    parts = urlsplit(uri)
    if "password" in parse_qs(parts.query):
        raise ConfigError(
            "a password in the query of a URI would be stored with the run",
            where="tracking.uri",
            got=uri.partition("?")[0] + "?...",
            remedy="write it as postgresql://user:password@host/db: there it is kept out of files",
        )
    login, at, host = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    if not colon:
        return uri
    os.environ[PASSWORD_VARIABLE] = password
    return urlunsplit(parts._replace(netloc=f"{user}{at}{host}"))
