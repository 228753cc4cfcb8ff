"""`segresmamba bench`: networks side by side, each measured in a process of its own.

`suite` runs them one after the other, `worker` runs in each process, `synthetic` makes data where
there is no dataset, `memory` measures and limits, `result` is one row, `report` and `picture` write
the rows.
"""

from segresmamba.bench.suite import Bench, bench, default_models

__all__ = ["Bench", "bench", "default_models"]
