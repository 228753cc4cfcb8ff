"""What a training step will take, found out without a GPU.

`timeline` follows the memory of a step through fake tensors (`simulation`), `states` knows what
DeepSpeed holds besides, `plan` searches, `report` shows.
"""

from segresmamba.planner.plan import MemoryPlan, Planner, gpu_memory_gib
from segresmamba.planner.tables import table, verdict
from segresmamba.planner.timeline import Timeline

__all__ = ["MemoryPlan", "Planner", "Timeline", "gpu_memory_gib", "table", "verdict"]
