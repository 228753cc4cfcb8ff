"""Conversions that an earlier version queued name this module."""

from segresmamba.data.conversion.plan import ConversionRequest as Request

__all__ = ["Request"]
