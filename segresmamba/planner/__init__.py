"""The memory that a training step needs, predicted without a GPU.

`timeline` follows the memory of a step on fake tensors (`simulation`), `states` adds what DeepSpeed
holds, `plan` searches for settings that fit, `tables` shows them. `out_of_memory` asks for all this
when a run has failed.
"""

from segresmamba.planner.plan import MemoryPlan, Planner, gpu_memory_gib
from segresmamba.planner.tables import table, verdict
from segresmamba.planner.timeline import Timeline

__all__ = ["MemoryPlan", "Planner", "Timeline", "gpu_memory_gib", "table", "verdict"]
