"""A stand-in: MLflow models that an earlier version saved name this module."""

from segresmamba.inference.model import _load_pyfunc

__all__ = ["_load_pyfunc"]
