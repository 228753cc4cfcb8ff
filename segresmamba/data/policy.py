"""Conversions that an earlier version queued name this module."""

from segresmamba.data.preprocessing import Policy

__all__ = ["Policy"]
