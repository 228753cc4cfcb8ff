"""Whole volumes through trained networks: windows, ensembles, label maps."""

from segresmamba.inference.predict import predict

__all__ = ["predict"]
