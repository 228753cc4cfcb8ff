"""What a training step will take, found out without a GPU.

`timeline` follows the memory of a step through fake tensors.
"""

from segresmamba.engine.planner.timeline import Timeline

__all__ = ["Timeline"]
