"""Jobs that an earlier version queued name this module."""

from launch.sweeps.trial_job import TrialJob

__all__ = ["TrialJob"]
