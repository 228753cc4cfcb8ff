"""DeepSpeed without MLflow, which its autotuner imports: what the ranks' server imports first.

`segresmamba.engine.zero.import_deepspeed` does the same, but it also sets up a process group.
"""

import sys

sys.modules["mlflow"] = None  # type: ignore[assignment]
import deepspeed  # noqa: E402, F401

del sys.modules["mlflow"]
