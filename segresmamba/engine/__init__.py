"""Training. Importing this package imports torch."""

from segresmamba.engine.lr_range import lr_range
from segresmamba.engine.stop import request_stop
from segresmamba.engine.trainer import train

__all__ = ["lr_range", "request_stop", "train"]
