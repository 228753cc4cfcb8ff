"""Scripts of users name this module."""

from launch.slurm.allocation import overrides

__all__ = ["overrides"]
