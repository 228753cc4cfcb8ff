"""What MLflow's errors mean: worth another try, or for the user to correct."""

from __future__ import annotations

from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

# Time-out and rate limit: the same request may succeed later. Any other 4xx is final.
TRY_AGAIN_CODES = (408, 429)


def error_name(error: Exception) -> str:
    """MLflow's name of an error; empty for any other error."""
    return str(getattr(error, "error_code", ""))


def is_final(error: Exception) -> bool:
    """Whether the same request would be refused again."""
    response = getattr(error, "response", None)
    if response is not None:
        code = response.status_code
    elif hasattr(error, "get_http_status_code"):
        code = error.get_http_status_code()
    else:
        return False
    return 400 <= code < 500 and code not in TRY_AGAIN_CODES


def refused_error(error: Exception, state: UploadState) -> TrackingError:
    """MLflow's refusal as an error of the user."""
    return TrackingError(
        "MLflow refuses this run",
        where=state.shown_uri,
        got=first_line(error),
        remedy="correct that, then run: segresmamba sync RUN_FOLDER",
    )


def deleted_error(what: str, command: str, state: UploadState) -> TrackingError:
    """An experiment or run that was deleted in MLflow, with the command that restores it."""
    return TrackingError(
        f"the {what} was deleted in MLflow",
        where=state.shown_uri,
        got=state.experiment,
        remedy=f"restore it: MLFLOW_TRACKING_URI={state.shown_uri} mlflow {command}, then run: "
        "segresmamba sync RUN_FOLDER; or set another tracking.experiment",
    )


def first_line(error: Exception) -> str:
    """The error in one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
