"""Training, evaluation and inference. Importing this package imports torch and MONAI."""

from segresmamba.engine.apply import evaluate_run, predict
from segresmamba.engine.stop import request_stop
from segresmamba.engine.trainer import train

__all__ = ["evaluate_run", "predict", "request_stop", "train"]
