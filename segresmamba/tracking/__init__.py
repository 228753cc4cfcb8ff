"""Tracking: the journal of a run is the truth; MLflow is built from it, as often as need be."""

from segresmamba.tracking.emissions import EmissionsMeter
from segresmamba.tracking.history import History, is_run, read_history
from segresmamba.tracking.journal import JOURNAL_NAME, read_journal
from segresmamba.tracking.memory import peak_memory
from segresmamba.tracking.mlflow_sink import sync
from segresmamba.tracking.mlflow_source import MlflowSource
from segresmamba.tracking.protocol import NullTracker, Status, Tracker, TrackingError
from segresmamba.tracking.run_tracker import open_tracker
from segresmamba.tracking.upload_state import run_hint, tracking_uri

__all__ = [
    "JOURNAL_NAME",
    "EmissionsMeter",
    "History",
    "MlflowSource",
    "NullTracker",
    "Status",
    "Tracker",
    "TrackingError",
    "is_run",
    "open_tracker",
    "peak_memory",
    "read_history",
    "read_journal",
    "run_hint",
    "sync",
    "tracking_uri",
]
