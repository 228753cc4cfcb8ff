"""Jobs that an earlier version queued name this module."""

from launch.jobs.train_job import TrainJob

__all__ = ["TrainJob"]
