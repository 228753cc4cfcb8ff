"""SegResMamba: distributed training of 3D medical-image segmentation.

Importing this package is instant: torch and the other heavy libraries are imported by the folders
that need them (see docs/architecture.md).
"""

import os

__version__ = "0.1.0"

# Must be set before torch loads OpenMP. By default an idle thread spins for milliseconds. When
# another process wants a core, a step then takes many times as long (measured in
# docs/performance.md, "Waiting threads").
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
