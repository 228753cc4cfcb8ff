"""MLflow servers that an earlier version queued name this module."""

from launch.ports import free_port

__all__ = ["free_port"]
