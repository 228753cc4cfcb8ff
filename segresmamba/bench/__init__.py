"""`segresmamba bench`: networks side by side, each measured in a process of its own.

`suite` runs them one after another, `worker` is what runs in each process, `synthetic` stands in
for a dataset, `memory` watches and limits, `result` is what comes out, `report` and `picture` write
it down.
"""

from segresmamba.bench.suite import Bench, bench, default_models

__all__ = ["Bench", "bench", "default_models"]
