"""Networks by name: single-device code that knows nothing of data, tracking or distribution."""

from segresmamba.models.arguments import ArgumentError
from segresmamba.models.registry import build, scan_backend
from segresmamba.models.released import load_released_state_dict, with_our_names
from segresmamba.models.segmamba import SegMamba
from segresmamba.models.segmamba_official import load_official_segmamba_state_dict
from segresmamba.models.segresmamba import SegResMamba
from segresmamba.models.tom import TriOrientedMamba

__all__ = [
    "ArgumentError",
    "SegMamba",
    "SegResMamba",
    "TriOrientedMamba",
    "build",
    "load_official_segmamba_state_dict",
    "load_released_state_dict",
    "scan_backend",
    "with_our_names",
]
