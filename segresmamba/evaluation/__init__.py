"""Scores of whole volumes in their original geometry, and pictures of them."""

from segresmamba.evaluation.evaluate_run import Evaluation, evaluate_run

__all__ = ["Evaluation", "evaluate_run"]
