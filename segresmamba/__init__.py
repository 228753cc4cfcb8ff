"""SegResMamba: distributed training of 3D medical-image segmentation.

    from segresmamba import load_model
    label = load_model("runs/first").segment("case_0000.nii.gz")

Importing this package is instant: torch and the other heavy libraries are imported by the folders
that need them (see docs/architecture.md).
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segresmamba.inference.model import load_model

__all__ = ["__version__", "load_model"]
__version__ = "0.1.0"

# Must be set before torch loads OpenMP. By default an idle thread spins for milliseconds. When
# another process wants a core, a step then takes many times as long (measured in
# docs/performance.md, "Waiting threads").
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def __getattr__(name: str) -> object:
    if name != "load_model":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from segresmamba.inference.model import load_model as loaded

    return loaded


def __dir__() -> list[str]:
    return [*globals(), "load_model"]
