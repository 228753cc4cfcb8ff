"""Scores of whole volumes in their original geometry, and pictures of them.

Names are imported on first use: processes that score label files need not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segresmamba.evaluation.evaluation import Evaluation
    from segresmamba.evaluation.folders import evaluate_folders
    from segresmamba.evaluation.measures import Scoring
    from segresmamba.evaluation.runs import evaluate_run

__all__ = ["Evaluation", "Scoring", "evaluate_folders", "evaluate_run"]

# No module has the name of a function: importing the module would hide the function.
_MODULE_OF = {
    "Evaluation": "evaluation",
    "Scoring": "measures",
    "evaluate_folders": "folders",
    "evaluate_run": "runs",
}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
