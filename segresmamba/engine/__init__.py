"""Training. Importing this package imports torch."""

from segresmamba.engine.stop import request_stop
from segresmamba.engine.trainer import train

__all__ = ["request_stop", "train"]
