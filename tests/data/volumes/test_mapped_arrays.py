from __future__ import annotations

import numpy as np

from segresmamba.data.volumes.mapped_arrays import free_before, mapped_zeros


def test_what_lies_before_a_view_is_given_back_and_nothing_else() -> None:
    volume = mapped_zeros((8, 64, 64), np.float32)  # four pages a plane
    volume[...] = 7
    free_before(volume[3, 5:])
    assert not volume[:3].any()
    assert (volume[3, 32:] == 7).all()
    assert (volume[4:] == 7).all()


def test_other_arrays_are_left_alone() -> None:
    for volume in (np.ones((8, 64, 64)), np.frombuffer(b"\1" * 32768, np.uint8).reshape(8, 64, 64)):
        free_before(volume[4])
        assert volume.all()
