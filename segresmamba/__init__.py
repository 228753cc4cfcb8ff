"""SegResMamba: distributed training of 3D medical-image segmentation.

Importing this package is instant: torch and the other heavy libraries are imported by the room
that needs them (see docs/architecture.md).
"""

__version__ = "0.1.0"
