"""Training, evaluation and inference. Importing this package imports torch and MONAI."""

from segresmamba.engine.stop import request_stop
from segresmamba.engine.trainer import train
from segresmamba.inference.predict import evaluate_run, predict

__all__ = ["evaluate_run", "predict", "request_stop", "train"]
