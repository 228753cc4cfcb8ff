"""Tracking: the journal of a run is the truth, and MLflow can be rebuilt from it at any time."""

from segresmamba.tracking.energy.emissions import EmissionsMeter
from segresmamba.tracking.energy.gpus import gpu_uuid
from segresmamba.tracking.energy.ledger import node_name
from segresmamba.tracking.energy.system import SystemSampler
from segresmamba.tracking.history import (
    PRUNED,
    STOPPED_EARLY,
    SUMMARY,
    History,
    finished_step,
    finished_text,
    is_run,
    read_history,
    run_folders,
)
from segresmamba.tracking.journal import read_journal, read_records
from segresmamba.tracking.logs import StepLog, log_as
from segresmamba.tracking.mapping import flatten
from segresmamba.tracking.memory import PhaseMemory, memory_metrics, peak_memory, status_kib
from segresmamba.tracking.mlflow.sink import sync
from segresmamba.tracking.mlflow.source import MlflowSource
from segresmamba.tracking.mlflow.state import run_hint, tracking_uri
from segresmamba.tracking.protocol import (
    JournalHeldError,
    NullTracker,
    Status,
    Tracker,
    TrackingError,
)
from segresmamba.tracking.provenance import environment, provenance
from segresmamba.tracking.run_tracker import open_tracker

__all__ = [
    "PRUNED",
    "STOPPED_EARLY",
    "SUMMARY",
    "EmissionsMeter",
    "History",
    "JournalHeldError",
    "MlflowSource",
    "NullTracker",
    "PhaseMemory",
    "Status",
    "StepLog",
    "SystemSampler",
    "Tracker",
    "TrackingError",
    "environment",
    "finished_step",
    "finished_text",
    "flatten",
    "gpu_uuid",
    "is_run",
    "log_as",
    "memory_metrics",
    "node_name",
    "open_tracker",
    "peak_memory",
    "provenance",
    "read_history",
    "read_journal",
    "read_records",
    "run_folders",
    "run_hint",
    "status_kib",
    "sync",
    "tracking_uri",
]
