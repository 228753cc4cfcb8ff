"""What MLflow's errors mean: to be tried again, or to be corrected by the user."""

from __future__ import annotations

from segresmamba.tracking.mlflow.state import UploadState
from segresmamba.tracking.protocol import TrackingError

# Time-out and rate limit: the same request may succeed later. Any other 4xx is final.
TRY_AGAIN_CODES = (408, 429)


def error_name(error: Exception) -> str:
    """MLflow's code of an error, such as RESOURCE_DOES_NOT_EXIST; empty for other errors."""
    return str(getattr(error, "error_code", ""))


def is_final(error: Exception) -> bool:
    """Whether MLflow would refuse the same request again."""
    response = getattr(error, "response", None)
    if response is not None:
        code = response.status_code
    elif hasattr(error, "get_http_status_code"):
        code = error.get_http_status_code()
    else:
        return False
    return 400 <= code < 500 and code not in TRY_AGAIN_CODES


def refused_error(error: Exception, state: UploadState) -> TrackingError:
    """The error to show if MLflow refuses a request for good."""
    return TrackingError(
        "MLflow refuses this run",
        where=state.shown_uri,
        got=first_line(error),
        remedy="correct the cause, then run: segresmamba sync RUN_FOLDER",
    )


def deleted_error(what: str, command: str, state: UploadState) -> TrackingError:
    """The error to show for an experiment or run that was deleted in MLflow.

    Args:
        what: "experiment" or "run".
        command: The mlflow command that restores it.
        state: Of the run folder.
    """
    return TrackingError(
        f"the {what} was deleted in MLflow",
        where=state.shown_uri,
        got=state.experiment,
        remedy=f"restore it: MLFLOW_TRACKING_URI={state.shown_uri} mlflow {command}, then run: "
        "segresmamba sync RUN_FOLDER; or set another tracking.experiment",
    )


def first_line(error: Exception) -> str:
    """The first line of an error, or its type if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
