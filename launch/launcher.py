"""Scripts of users name this module."""

from launch.jobs.start import run_in_allocation, start

__all__ = ["run_in_allocation", "start"]
