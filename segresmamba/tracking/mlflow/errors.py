"""What MLflow's errors mean: to be tried again, or to be corrected by the user."""

from __future__ import annotations

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


def first_line(error: Exception) -> str:
    """The first line of an error, or its type if it has no text."""
    return (str(error).splitlines() or [type(error).__name__])[0]
