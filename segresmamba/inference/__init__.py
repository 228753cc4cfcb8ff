"""Whole volumes through a trained network."""

from segresmamba.inference.predict import predict

__all__ = ["predict"]
