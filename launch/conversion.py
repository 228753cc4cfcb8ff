"""Jobs that an earlier version queued name this module."""

from launch.convert_job import ConvertJob

__all__ = ["ConvertJob"]
