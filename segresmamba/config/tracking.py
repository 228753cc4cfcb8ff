"""The settings of tracking, and how a password in a tracking URI is kept out of files.

A configuration is written to config.yaml, pickled for Slurm and sent to MLflow as parameters, so it
never holds a password. The password in `tracking.uri` is moved into the environment, which the
ranks, the uploader and a requeued Slurm job inherit.
"""

from __future__ import annotations

import os
from typing import Literal
from urllib.parse import unquote, urlsplit, urlunsplit

from pydantic import Field, PositiveFloat, field_validator

from segresmamba.config.section import Section
from segresmamba.errors import ConfigError
from segresmamba.redaction import without_login

PASSWORD_VARIABLE = "SEGRESMAMBA_TRACKING_PASSWORD"


class TrackingConfig(Section):
    """Where metrics go besides the journal in the run folder, and what else is measured."""

    uri: str | None = None
    """Tracking URI of MLflow. Unset, it is the server of slurm/mlflow.sh if one runs, and otherwise
    the file mlflow.db in run.root. A password in the URI is kept in the environment
    (SEGRESMAMBA_TRACKING_PASSWORD) and never written to a file."""
    experiment: str = "segresmamba"
    """Name of the MLflow experiment."""
    # MLflow is asked for a group by a query with the name in quotes, so it has none itself.
    group: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    """Name of the sweep or cross-validation that the run belongs to: letters, digits, spaces, dots,
    hyphens and underscores, with a letter or a digit first. MLflow shows the runs of a
    group as children of one run with this name."""
    enabled: bool = True
    """Send the journal to MLflow."""
    log_model: bool = True
    """Send the best weights to MLflow as a model when the run finishes."""
    register_model: str | None = Field(default=None, min_length=1)
    """Name for the best model in MLflow's model registry; unset, it is not registered."""
    system_metrics: bool = True
    """Record the load of GPUs, processors, memory, disk and network of each node every 10 s."""
    emissions: bool = True
    """Measure energy and CO2e with CodeCarbon, which needs no network for it."""
    country: str | None = Field(default=None, pattern=r"^[A-Z]{3}$")
    """Country whose carbon intensity converts energy to CO2e, as an ISO 3166 alpha-3 code such as
    DEU; unset takes the world's average, and says so."""
    grid_g_per_kwh: PositiveFloat | None = None
    """Carbon intensity of your electricity in g CO2e/kWh; unset takes that of the country."""
    logs: Literal["auto", "text", "json"] = "auto"
    """Style of the log. auto: a progress bar on a terminal, otherwise one line a minute; text: one
    line a minute; json: one JSON object in each line."""

    @field_validator("uri")
    @classmethod
    def _keep_password(cls, uri: str | None) -> str | None:
        """Move the password of the URI into the environment."""
        if uri is None:
            return None
        parts = urlsplit(uri)
        query = f"?{parts.query}"
        if without_login(query) != query:
            raise ConfigError(
                "a password in the query of a URI would be stored with the run",
                where="tracking.uri",
                got=uri.partition("?")[0] + "?...",
                remedy="write postgresql://user:password@host/db: there it is kept out of files",
            )
        login, at, host = parts.netloc.rpartition("@")  # a password may contain an @
        user, colon, password = login.partition(":")
        if not colon:
            return uri
        os.environ[PASSWORD_VARIABLE] = password
        return urlunsplit(parts._replace(netloc=f"{user}{at}{host}"))


def with_password(uri: str) -> str:
    """Put the password of the environment back into a tracking URI."""
    parts = urlsplit(uri)
    password = os.environ.get(PASSWORD_VARIABLE)
    if not (parts.username and password):
        return uri
    # The variable holds the password as it was in the URI, so it is quoted already.
    return urlunsplit(parts._replace(netloc=parts.netloc.replace("@", f":{password}@", 1)))


def server_login(uri: str) -> tuple[str, str | None, str | None]:
    """A server's URI without its login, the user in it, and the password of the environment."""
    parts = urlsplit(uri)
    password = os.environ.get(PASSWORD_VARIABLE)
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    user = parts.username and unquote(parts.username)
    return bare, user, password and unquote(password)
