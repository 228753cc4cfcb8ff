"""Networks: single-device code that knows nothing of data, tracking or distribution."""

from segresmamba.models.registry import build, scan_backend
from segresmamba.models.released import load_released_state_dict
from segresmamba.models.segresmamba import SegResMamba
from segresmamba.models.tom import TriOrientedMamba

__all__ = ["SegResMamba", "TriOrientedMamba", "build", "load_released_state_dict", "scan_backend"]
